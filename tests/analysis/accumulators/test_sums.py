"""Every additive accumulator against loops over single tokens.

Shape suffixes: T tokens, N experts of a layer, S groups, X lags, B bins or batch sizes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import combinations, pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from moe_probe.analysis.accumulators.documents import (
    DocumentCounts,
    cluster_moments,
    cluster_tokens,
)
from moe_probe.analysis.accumulators.locality import BATCH_SIZES, BatchStats, Overlaps
from moe_probe.analysis.accumulators.structure import (
    FlowCounts,
    PairCounts,
    PositionCounts,
    SlotCounts,
)
from moe_probe.analysis.kernels import plain
from moe_probe.analysis.reading.rules import Rule
from moe_probe.analysis.reading.source import Source
from moe_probe.analysis.scan import scan
from tests.analysis.streams import LAYERS, Token, make_stream

SEEDS = [0, 1, 2]


@pytest.fixture(params=SEEDS)
def stream(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Source, list[Token]]:
    trace, tokens = make_stream(tmp_path / "trace", request.param)
    return Source(trace), tokens


def filled(kind: Any, source: Source, kernels: ModuleType = plain, **options: Any) -> Any:
    """Scan a whole trace into one accumulator."""
    accumulator = kind(source.layers, Rule.UNIQUE, source.index, **options)
    scan(source, [accumulator], kernels=kernels)
    return accumulator


def table(shape: tuple[int, ...], places: Iterable[tuple[int, ...]]) -> list[Any]:
    """Count how often each place occurs."""
    counts = np.zeros(shape, np.int64)
    for place in places:
        counts[place] += 1
    return counts.tolist()  # type: ignore[no-any-return]


def test_selections_by_slot(stream: tuple[Source, list[Token]]) -> None:
    source, tokens = stream
    counts = filled(SlotCounts, source)
    for spec in LAYERS:
        places = (
            (slot, expert) for t in tokens for slot, expert in enumerate(t.experts[spec.layer])
        )
        found = counts.arrays[spec.layer]["slot_counts_KN"]
        assert found.tolist() == table((spec.top_k, spec.num_experts), places)


def test_pairs(stream: tuple[Source, list[Token]]) -> None:
    source, tokens = stream
    counts = filled(PairCounts, source)
    for spec in LAYERS:
        pairs = [pair for t in tokens for pair in combinations(t.experts[spec.layer], 2)]
        both = pairs + [(b, a) for a, b in pairs]
        found_NN = counts.arrays[spec.layer]["pairs_NN"]
        assert found_NN.tolist() == table((spec.num_experts, spec.num_experts), both)


def test_flows_to_the_next_layer_with_experts(stream: tuple[Source, list[Token]]) -> None:
    source, tokens = stream
    counts = filled(FlowCounts, source)
    for here, there in pairwise(LAYERS):
        flows = [(t.experts[here.layer], t.experts[there.layer]) for t in tokens]
        places = [(a[0], b[0]) for a, b in flows if a and b]
        found = counts.arrays[here.layer]["flows_NM"].tolist()
        assert found == table((here.num_experts, there.num_experts), places)
    assert counts.arrays[7] == {}


def test_selections_by_position(stream: tuple[Source, list[Token]]) -> None:
    source, tokens = stream
    counts = filled(PositionCounts, source)
    for spec in LAYERS:
        places = (
            (t.position.bit_length(), expert) for t in tokens for expert in t.experts[spec.layer]
        )
        arrays = counts.arrays[spec.layer]
        shape = arrays["position_counts_BN"].shape
        assert arrays["position_counts_BN"].tolist() == table(shape, places)
        bins = ((t.position.bit_length(),) for t in tokens)
        assert arrays["position_tokens_B"].tolist() == table(shape[:1], bins)


@pytest.mark.parametrize("other", [False, True])
def test_overlaps(stream: tuple[Source, list[Token]], other: bool) -> None:
    source, tokens = stream
    lags = (1, 2, 4)
    counts = filled(Overlaps, source, lags=lags, other_tokens=True)
    subjects = [subject for _, subject, _ in source.index.groups]
    name = "other_token_overlaps_SX5" if other else "overlaps_SX5"
    for spec in LAYERS:
        expected = np.zeros((len(subjects), len(lags), 5), np.int64)
        for place, token in enumerate(tokens):
            for number, lag in enumerate(lags):
                before = tokens[place - lag] if place >= lag else token
                same = (before.sequence, before.document, before.position + lag)
                if same != (token.sequence, token.document, token.position):
                    continue
                if other and before.token_id == token.token_id:
                    continue
                now, then = token.experts[spec.layer], before.experts[spec.layer]
                common = len(set(now) & set(then))
                values = (1, common, common > 0, now[:1] == then[:1] != [], set(now) == set(then))
                expected[subjects.index(token.subject), number] += values
        assert counts.arrays[spec.layer][name].tolist() == expected.tolist()


def test_documents_and_their_moments(stream: tuple[Source, list[Token]]) -> None:
    source, tokens = stream
    clusters = source.index.clusters
    most = int(cluster_tokens(source, Rule.UNIQUE).max())
    counts = filled(DocumentCounts, source, most=most)
    names = sorted({(t.subject, t.document) for t in tokens})
    assert len(names) == len(clusters)
    for spec in LAYERS:
        arrays = counts.arrays[spec.layer]
        places = [(names.index((t.subject, t.document)), t) for t in tokens]
        experts = ((c, e) for c, t in places for e in t.experts[spec.layer])
        shape = (len(names), spec.num_experts)
        assert arrays["counts_CN"].tolist() == table(shape, experts)
        assert arrays["tokens_C"].tolist() == table(shape[:1], ((c,) for c, _ in places))
        assert arrays["counts_CN"].dtype == np.uint8

    moments = cluster_moments(arrays["counts_CN"], arrays["tokens_C"], clusters.group_C, 2)
    for group, (_, subject, _) in enumerate(source.index.groups):
        mine = [name[0] == subject for name in names]
        n_C, c_CN = arrays["tokens_C"][mine], arrays["counts_CN"][mine].astype(int)
        assert moments.clusters_S[group] == sum(mine)
        assert moments.n_square_S[group] == (n_C**2).sum()
        assert moments.cn_SN[group].tolist() == (c_CN * n_C[:, None]).sum(axis=0).tolist()
        assert moments.c_square_SN[group].tolist() == (c_CN**2).sum(axis=0).tolist()


@pytest.mark.parametrize("sizes", [BATCH_SIZES[:2], (5, 20, 60)])
@pytest.mark.parametrize("before", [0, 3, 71])
def test_batches(tmp_path: Path, sizes: tuple[int, ...], before: int) -> None:
    """Batches begin where the stream does, `before` tokens before the first of these."""
    trace, tokens = make_stream(tmp_path / "trace", 5, documents=150)
    counts = filled(BatchStats, Source(trace), sizes=sizes, before=before)
    assert len(tokens) > 3 * sizes[0]
    for spec in LAYERS:
        for number, size in enumerate(sizes):
            sums = np.zeros(5)
            for begin in range(-before % size, len(tokens) - size + 1, size):
                batch = tokens[begin : begin + size]
                load_N = np.bincount(
                    [e for t in batch for e in t.experts[spec.layer]], minlength=spec.num_experts
                )
                if load_N.any():
                    ratio = load_N.max() / load_N.mean()
                    width = load_N.std() / load_N.mean()
                    sums += (1, ratio, ratio**2, width, 1 / math.sqrt(load_N.sum()))
            found = counts.arrays[spec.layer]["stats_B5"][number]
            assert found == pytest.approx(sums, rel=1e-12)
