"""Sums and histograms of gate weights against loops over single tokens.

Shape suffixes: T tokens, K slots, N experts, S groups, Q quantities, H bins.
"""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from moe_probe.analysis.accumulators.base import LayerAccumulator
from moe_probe.analysis.accumulators.weights import Confidence, WeightSums
from moe_probe.analysis.kernels import plain
from moe_probe.analysis.metrics.confidence import BINS, EDGES, edges
from moe_probe.analysis.reading.rules import Rule
from moe_probe.analysis.reading.source import Source
from moe_probe.analysis.scan import scan
from moe_probe.trace import LayerSpec, TraceWriter, open_trace

LAYERS = [
    LayerSpec(layer=1, num_experts=7, top_k=3, scalars=True),
    LayerSpec(layer=2, num_experts=300, top_k=4, empty_slots=True),
    LayerSpec(layer=5, num_experts=5, top_k=1, scalars=True),
    LayerSpec(layer=6, num_experts=255, top_k=2, empty_slots=True, scalars=True),
]
SUBJECTS = ("law", "art", "empty")
TIMES = 3
"""How often the model ran the first document."""


class Token(NamedTuple):
    """What one token selected in one layer: experts and float16 weights of its filled slots."""

    subject: str
    times: int
    experts: list[int]
    weights: list[float]
    scalars: list[float]


Tokens = dict[int, list[Token]]


def rows_of(rng: np.random.Generator, spec: LayerSpec, tokens: int) -> tuple[np.ndarray, ...]:
    """Ids, weights and scalars of random tokens; some slots are empty, some weights 0."""
    ids_TK = rng.random((tokens, spec.num_experts)).argsort(axis=1)[:, : spec.top_k]
    # Sigmoid routers with a scale have weights above 1, which need not sum to anything.
    weights_TK = (rng.random((tokens, spec.top_k)) * 3).astype(np.float16)
    weights_TK[rng.random((tokens, spec.top_k)) < 0.2] = 0
    weights_TK[rng.random(tokens) < 0.1] = 0
    if spec.empty_slots:
        is_empty_TK = rng.random((tokens, spec.top_k)) < 0.3
        ids_TK[is_empty_TK], weights_TK[is_empty_TK] = -1, 0
    low, high = [-40, -0.1, 0], [100, math.log(spec.num_experts) + 0.1, 4]
    scalars_T3 = rng.uniform(low, high, (tokens, 3)).astype(np.float16)
    scalars_T3[rng.random(tokens) < 0.1, 2] = 0
    return ids_TK, weights_TK, scalars_T3


def make_trace(path: Path, seed: int) -> tuple[Source, Tokens]:
    """Write ragged documents in several parts, and the same tokens as lists."""
    rng = np.random.default_rng(seed)
    tokens: Tokens = {spec.layer: [] for spec in LAYERS}
    with TraceWriter(path, layers=LAYERS, capture="weights", segment_tokens=32) as writer:
        for number in range(24):
            length = int(rng.integers(1, 16)) if number != 5 else 1
            subject = SUBJECTS[number % 2]
            times = TIMES if number == 0 else 1
            drawn = [rows_of(rng, spec, length) for spec in LAYERS]
            writer.add(
                [ids for ids, _, _ in drawn],
                topk_weights=[weights for _, weights, _ in drawn],
                router_scalars=[
                    rows[2] for spec, rows in zip(LAYERS, drawn, strict=True) if spec.scalars
                ],
                subject=subject,
                doc_id=number,
                multiplicity=times,
            )
            for spec, (ids_TK, weights_TK, scalars_T3) in zip(LAYERS, drawn, strict=True):
                for ids, weights, scalars in zip(ids_TK, weights_TK, scalars_T3, strict=True):
                    chosen = ids >= 0
                    named = (ids[chosen].tolist(), weights[chosen].tolist(), scalars.tolist())
                    tokens[spec.layer].append(Token(subject, times, *named))
        writer.add(
            [np.zeros((0, spec.top_k), int) for spec in LAYERS],
            topk_weights=[np.zeros((0, spec.top_k)) for spec in LAYERS],
            router_scalars=[np.zeros((0, 3)) for spec in LAYERS if spec.scalars],
            subject=SUBJECTS[2],
        )
    return Source(open_trace(path)), tokens


@pytest.fixture(params=[0, 1])
def stream(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Source, Tokens]:
    source, tokens = make_trace(tmp_path / "trace", request.param)
    assert len(source.parts) > 4
    return source, tokens


def filled(
    kind: type[LayerAccumulator], source: Source, rule: Rule, parts: slice = slice(None)
) -> Any:
    """Scan some parts of a trace."""
    shard = copy.copy(source)
    shard.parts = source.parts[parts]
    accumulator = kind(source.layers, rule, source.index)
    scan(shard, [accumulator], kernels=plain)
    return accumulator


@pytest.mark.parametrize("rule", [Rule.UNIQUE, Rule.RAW])
def test_sums(stream: tuple[Source, Tokens], rule: Rule) -> None:
    source, tokens = stream
    sums = filled(WeightSums, source, rule)
    assert [subject for _, subject, _ in sums.axes.groups].count("empty") == 1
    for spec in LAYERS:
        expected: dict[str, Any] = {n: defaultdict(float) for n in sums.arrays[spec.layer]}
        for token in tokens[spec.layer]:
            times = token.times if rule is Rule.RAW else 1
            mass = math.fsum(token.weights)
            expected["mass_sum_S"][token.subject] += times * mass
            for expert, weight in zip(token.experts, token.weights, strict=True):
                at = (token.subject, expert)
                expected["weight_sum_SN"][at] += times * weight
                expected["weight_square_sum_SN"][at] += times * weight**2
                expected["share_sum_SN"][at] += times * weight / mass if mass else 0
        for group, (_, subject, _) in enumerate(sums.axes.groups):
            for name, table in sums.arrays[spec.layer].items():
                found, wanted = table[group], expected[name]
                if name == "mass_sum_S":
                    assert found == pytest.approx(wanted[subject], rel=1e-12)
                else:
                    row_N = [wanted[subject, expert] for expert in range(spec.num_experts)]
                    np.testing.assert_allclose(found, row_N, rtol=1e-12)


def naive_bin(quantity: str, value: float, spec: LayerSpec) -> int:
    """Look the bin up among the edges; what lies beyond belongs to the outer bins."""
    edges_E = edges(quantity, spec.num_experts, spec.top_k)
    return int(np.clip(np.searchsorted(edges_E, value, side="right") - 1, 0, BINS - 1))


def naive_values(token: Token, spec: LayerSpec) -> dict[str, float]:
    values = {}
    mass = math.fsum(token.weights)
    if mass:
        shares = [weight / mass for weight in token.weights if weight]
        values["top_share"] = max(shares)
        values["effective_k"] = math.exp(-math.fsum(p * math.log(p) for p in shares))
    if spec.scalars:
        values |= dict(zip(("logsumexp", "entropy", "margin"), token.scalars, strict=True))
    return values


@pytest.mark.parametrize("rule", [Rule.UNIQUE, Rule.RAW])
def test_histograms(stream: tuple[Source, Tokens], rule: Rule) -> None:
    source, tokens = stream
    found = filled(Confidence, source, rule)
    for spec in LAYERS:
        expected_QH = {quantity: np.zeros(BINS, np.int64) for quantity in EDGES}
        expected_Q3: dict[str, list[float]] = {quantity: [0, 0, 0] for quantity in EDGES}
        for token in tokens[spec.layer]:
            for quantity, value in naive_values(token, spec).items():
                times = token.times if rule is Rule.RAW else 1
                expected_QH[quantity][naive_bin(quantity, value, spec)] += times
                for power in range(3):
                    expected_Q3[quantity][power] += times * value**power
        bins_QH = found.arrays[spec.layer]["bins_QH"]
        for quantity, row_H in zip(EDGES, bins_QH, strict=True):
            assert row_H.tolist() == expected_QH[quantity].tolist(), (spec.layer, quantity)
        moments_Q3 = found.arrays[spec.layer]["moments_Q3"]
        np.testing.assert_allclose(moments_Q3, list(expected_Q3.values()), rtol=1e-5)
        assert bins_QH[:3].any() == spec.scalars


@pytest.mark.parametrize("kind", [WeightSums, Confidence])
def test_parts_merge_to_the_whole(
    stream: tuple[Source, Tokens], tmp_path: Path, kind: type[LayerAccumulator]
) -> None:
    source, _ = stream
    whole = filled(kind, source, Rule.UNIQUE)
    for cut in (0, 1, len(source.parts) // 2, len(source.parts)):
        merged = filled(kind, source, Rule.UNIQUE, slice(cut, None))
        before = filled(kind, source, Rule.UNIQUE, slice(cut))
        before.save(tmp_path / "before.npz")
        loaded = kind.load(tmp_path / "before.npz")
        for layer, arrays in before.arrays.items():
            for name, array in arrays.items():
                assert np.array_equal(loaded.arrays[layer][name], array)
        merged.merge(loaded)
        assert merged.axes == whole.axes
        for layer, arrays in whole.arrays.items():
            for name, array in arrays.items():
                np.testing.assert_allclose(merged.arrays[layer][name], array, rtol=1e-12)
