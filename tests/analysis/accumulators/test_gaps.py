"""Idle runs in every order against a loop over a list of tokens.

Shape suffixes: N experts of a layer, C clusters, W windows, R orders.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from moe_probe.analysis.accumulators.counts import Counts
from moe_probe.analysis.accumulators.gaps import Gaps, IdleRuns
from moe_probe.analysis.kernels import plain
from moe_probe.analysis.reading.orders import Order
from moe_probe.analysis.reading.rules import Rule
from moe_probe.analysis.reading.source import Source
from moe_probe.analysis.scan import scan
from moe_probe.errors import UsageError
from tests.analysis.streams import LAYERS, NEVER, Token, canonical, make_stream

WINDOWS = (2, 5, 12)
ORDERS = ["canonical", "execution", "shuffle-docs", "shuffle-docs:7"]


def scanned(source: Source, kernels: ModuleType = plain) -> tuple[Gaps, Counts]:
    gaps = Gaps(source.layers, Rule.UNIQUE, source.index, most=40, windows=WINDOWS)
    counts = Counts(source.layers, Rule.UNIQUE, source.index)
    scan(source, [gaps, counts], kernels=kernels)
    return gaps, counts


def ordered(tokens: list[Token], order: Order) -> list[list[Token]]:
    """The documents, in an order, as lists of their tokens."""
    documents: dict[Any, list[Token]] = {}
    for token in tokens if order.kind == "execution" else canonical(tokens):
        documents.setdefault((token.subject, token.document), []).append(token)
    found = list(documents.values())
    if order.kind == "shuffle-docs":
        return [
            found[c]
            for c in np.random.default_rng([order.seed, len(found)]).permutation(len(found))
        ]
    return found


def naive(selects: list[bool]) -> dict[str, Any]:
    """Idle runs of one expert, from whether each token selects it."""
    hits = [place for place, hit in enumerate(selects) if hit]
    between = [b - a - 1 for a, b in itertools.pairwise(hits)]
    leading = hits[0] if hits else len(selects)
    current = len(selects) - 1 - hits[-1] if hits else len(selects)
    runs = [*between, leading, current] if hits else [len(selects)]
    return {
        "longest_N": max(runs),
        "leading_N": leading,
        "current_N": current,
        "first_seen_N": hits[0] if hits else -1,
        "gap_number_N": len(between),
        "gap_sum_N": sum(between),
        "gap_square_sum_N": sum(run * run for run in between),
        "runs_WN": [sum(run >= w for run in runs) for w in WINDOWS],
        "idle_tokens_WN": [sum(run for run in runs if run >= w) for w in WINDOWS],
        "sliding_WN": [sum(max(run - w + 1, 0) for run in runs) for w in WINDOWS],
        "between": between,
    }


def assert_equal(runs: IdleRuns, expert: int, expected: dict[str, Any]) -> None:
    between = expected.pop("between")
    found = {name: getattr(runs, name)[..., expert].tolist() for name in expected}
    assert found == expected
    assert len(between) == expected["gap_number_N"]


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", ORDERS)
def test_runs_of_every_expert(tmp_path: Path, seed: int, name: str) -> None:
    trace, tokens = make_stream(tmp_path / "trace", seed)
    order, source = Order.parse(name), Source(trace)
    gaps, counts = scanned(source)
    line = [token for document in ordered(tokens, order) for token in document]
    for spec in LAYERS:
        counts_N = counts.layer(spec.layer).counts_N
        runs = gaps.runs(spec.layer, order, counts_N, plain)
        assert runs.tokens == len(line)
        histogram = [0] * len(runs.histogram_H)
        for expert in range(spec.num_experts):
            expected = naive([expert in token.experts[spec.layer] for token in line])
            for run in expected["between"]:
                histogram[run.bit_length()] += 1
            assert_equal(runs, expert, expected)
        assert runs.histogram_H.tolist() == histogram
        assert runs.longest_N[NEVER] == len(line)

        longest_RN, first_seen_RN, windows_RW3N = gaps.longest(
            spec.layer, [order, order], counts_N, plain
        )
        assert longest_RN.tolist() == [runs.longest_N.tolist()] * 2
        assert first_seen_RN.tolist() == [runs.first_seen_N.tolist()] * 2
        assert windows_RW3N[1, :, 0].tolist() == runs.runs_WN.tolist()
        assert windows_RW3N[1, :, 2].tolist() == runs.sliding_WN.tolist()


@pytest.mark.parametrize("seed", [0, 1])
def test_runs_inside_documents(tmp_path: Path, seed: int) -> None:
    trace, tokens = make_stream(tmp_path / "trace", seed)
    gaps, counts = scanned(Source(trace))
    documents = ordered(tokens, Order("canonical"))
    for spec in LAYERS:
        counts_N = counts.layer(spec.layer).counts_N
        runs = gaps.runs(spec.layer, Order("request-local"), counts_N, plain)
        for expert in range(spec.num_experts):
            parts = [
                naive([expert in token.experts[spec.layer] for token in document])
                for document in documents
            ]
            for name in ("longest_N", "leading_N", "current_N"):
                assert getattr(runs, name)[expert] == max(part[name] for part in parts), name
            for name in ("gap_number_N", "gap_sum_N", "gap_square_sum_N", "runs_WN", "sliding_WN"):
                total = np.sum([part[name] for part in parts], axis=0)
                assert getattr(runs, name)[..., expert].tolist() == total.tolist(), name


def test_rules_that_count_a_token_twice_are_refused(tmp_path: Path) -> None:
    source = Source(make_stream(tmp_path / "trace", 0)[0])
    gaps = Gaps(source.layers, Rule.RAW, source.index, most=40)
    with pytest.raises(UsageError, match="Idle runs need every token once"):
        scan(source, [gaps], kernels=plain)


def test_forward_passes_are_no_order_of_documents(tmp_path: Path) -> None:
    gaps, counts = scanned(Source(make_stream(tmp_path / "trace", 0)[0]))
    counts_N = counts.layer(1).counts_N
    with pytest.raises(UsageError, match="idle runs in it are those of PassExperts"):
        gaps.runs(1, Order.parse("forward-passes"), counts_N, plain)


@pytest.mark.parametrize("name", ["forward-passes:1", "canonical:1", "random", "shuffle-docs:x"])
def test_orders_that_there_are_not(name: str) -> None:
    with pytest.raises(UsageError, match="order"):
        Order.parse(name)
    assert str(Order.parse("shuffle-docs:3")) == "shuffle-docs:3"
