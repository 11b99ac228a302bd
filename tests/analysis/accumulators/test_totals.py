"""Accumulators of one scan agree on what they count, whatever the rule.

Shape suffixes: T counted rows, K slots, N and M experts of two layers, H devices or
halves, Q quantities.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np
import pytest

from moe_probe.analysis.accumulators.counted import Counted
from moe_probe.analysis.kernels import plain
from moe_probe.analysis.reading.orders import Order
from moe_probe.analysis.reading.rules import Rule
from tests.analysis.accumulators.shards import LARGE, SMALL, Stream

every_rule = pytest.mark.parametrize("rule", list(Rule))


class Scanned(NamedTuple):
    stream: Stream
    rule: Rule

    @property
    def found(self) -> dict[str, Any]:
        return self.stream.filled(self.rule, self.stream.parts)

    def slots(self) -> tuple[np.ndarray, dict[int, np.ndarray]]:
        """How often each counted row counts, and per layer the experts that it has."""
        source, weights = self.stream.source, [np.zeros(0, np.int64)]
        k: dict[int, list[np.ndarray]] = {n: [np.zeros(0, np.int64)] for n in source.layers}
        for rows in source.read(list(source.layers)):
            counted = Counted.of(rows.pieces(self.rule))
            weights.append(counted.weight_T)
            for layer, spec in source.layers.items():
                is_real_TK = rows.topk_ids(layer)[counted.row_T] < spec.num_experts
                k[layer].append(is_real_TK.sum(axis=1))
        return np.concatenate(weights), {n: np.concatenate(parts) for n, parts in k.items()}


@pytest.fixture(scope="module")
def streams(tmp_path_factory: pytest.TempPathFactory) -> list[Stream]:
    path = tmp_path_factory.mktemp("totals")
    shapes = [(10, SMALL), (6, LARGE), (1, SMALL)]
    return [Stream.of(path / f"{n}", n, *shape) for n, shape in enumerate(shapes)]


@every_rule
@pytest.mark.parametrize("number", range(3))
def test_selections(streams: list[Stream], number: int, rule: Rule) -> None:
    """Every table that splits selections by something adds up to those of each expert."""
    scanned = Scanned(streams[number], rule)
    found = scanned.found
    weight_T, k_T = scanned.slots()
    for layer in streams[number].source.layers:
        arrays = {kind: a.arrays[layer] for kind, a in found.items() if hasattr(a, "arrays")}
        counts = found["counts"].layer(layer)
        assert counts.tokens == weight_T.sum()
        assert counts.assignments == weight_T @ k_T[layer]
        split = {
            "slots": arrays["slot_counts"]["slot_counts_KN"].sum(axis=0),
            "positions": arrays["positions"]["position_counts_BN"].sum(axis=0),
            "documents": arrays["documents"]["counts_CN"].sum(axis=0),
            "moments": found["moments"].moments(layer).c_SN.sum(axis=0),
            "token ids": arrays["token_counts"]["token_counts_HXN"].sum(axis=(0, 1)),
        }
        if "windows" in arrays:
            split["windows"] = arrays["windows"]["windows_VN"].sum(axis=0)
        for name, counts_N in split.items():
            assert counts_N.tolist() == counts.counts_N.tolist(), name
        devices_H = arrays["fanout"]["slots_SH"].sum(axis=0)
        assert devices_H @ np.arange(len(devices_H)) == counts.assignments
        assert arrays["working_sets"]["sizes_SX2"][:, 0].sum(axis=0).tolist() == [
            counts.tokens,
            counts.assignments,
        ]
        for kind, name in (
            ("documents", "tokens_C"),
            ("positions", "position_tokens_B"),
            ("token_counts", "tokens_HX"),
        ):
            assert arrays[kind][name].sum() == counts.tokens, name


@every_rule
@pytest.mark.parametrize("number", range(3))
def test_pairs(streams: list[Stream], number: int, rule: Rule) -> None:
    """Pairs in a token: sum k (k - 1) / 2; between layers: sum k k', T k^2 where k is fixed."""
    scanned = Scanned(streams[number], rule)
    found, layers = scanned.found, streams[number].source.layers
    weight_T, k_T = scanned.slots()
    for layer, spec in layers.items():
        pairs_NN = found["pairs"].arrays[layer]["pairs_NN"]
        assert pairs_NN.tolist() == pairs_NN.T.tolist()
        assert np.triu(pairs_NN).sum() == weight_T @ (k_T[layer] * (k_T[layer] - 1)) // 2
        if not spec.empty_slots:
            counts_N = found["counts"].layer(layer).counts_N
            assert pairs_NN.sum(axis=1).tolist() == (counts_N * (spec.top_k - 1)).tolist()
    for layer, following in itertools.pairwise(layers):
        flows = found["set_flows"].arrays[layer]
        assert flows["set_flows_HNM"].sum() == weight_T @ (k_T[layer] * k_T[following])
        assert flows["next_counts_HM"].sum() == weight_T @ k_T[following]
        first = found["flows"].arrays[layer]["flows_NM"]
        assert first.sum() == weight_T @ ((k_T[layer] > 0) & (k_T[following] > 0))


@every_rule
@pytest.mark.parametrize("number", range(3))
def test_weights(streams: list[Stream], number: int, rule: Rule) -> None:
    """Mass is the sum of weights, shares of a token sum to 1, and histograms hold every token."""
    scanned = Scanned(streams[number], rule)
    found = scanned.found
    weight_T, _ = scanned.slots()
    for layer, spec in streams[number].source.layers.items():
        sums = found["weights"].arrays[layer]
        mass, tokens = sums["mass_sum_S"].sum(), weight_T.sum()
        assert sums["weight_sum_SN"].sum() == pytest.approx(mass, rel=1e-12)
        assert (sums["weight_square_sum_SN"] <= sums["weight_sum_SN"] + 1e-12).all()
        bins_Q = found["confidence"].arrays[layer]["bins_QH"].sum(axis=1)
        with_mass = bins_Q[-1]
        assert sums["share_sum_SN"].sum() == pytest.approx(with_mass, rel=1e-12)
        assert bins_Q[-2] == with_mass <= tokens
        assert bins_Q[:3].tolist() == [tokens if spec.scalars else 0] * 3


@pytest.mark.parametrize("rule", [rule for rule in Rule if rule is not Rule.RAW])
@pytest.mark.parametrize("number", range(3))
def test_idle_runs(streams: list[Stream], number: int, rule: Rule) -> None:
    """Tokens that select an expert and those of its idle runs are all tokens."""
    found = Scanned(streams[number], rule).found
    for layer in streams[number].source.layers:
        counts = found["counts"].layer(layer)
        for order in ("canonical", "execution", "shuffle-docs:1"):
            runs = found["gaps"].runs(layer, Order.parse(order), counts.counts_N, plain)
            seen_N = counts.counts_N > 0
            all_N = counts.counts_N + runs.leading_N + runs.gap_sum_N + runs.current_N
            assert all_N[seen_N].tolist() == [counts.tokens] * int(seen_N.sum())
            assert (runs.longest_N[~seen_N] == counts.tokens).all()
            assert runs.gap_number_N.tolist() == np.maximum(counts.counts_N - 1, 0).tolist()
            assert runs.histogram_H.sum() == runs.gap_number_N.sum()
        passes = found["passes"].arrays[layer]
        assert passes["tokens_P"].sum() == counts.tokens
