"""Accumulators of shards join to that of the whole, however the shards are cut, also from files."""

from __future__ import annotations

import copy
import itertools
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_probe.analysis.accumulators.base import LayerAccumulator
from moe_probe.analysis.accumulators.counts import Counts
from moe_probe.analysis.accumulators.documents import DocumentCounts, cluster_moments
from moe_probe.analysis.accumulators.fanout import DeviceFanout
from moe_probe.analysis.accumulators.gaps import Gaps
from moe_probe.analysis.accumulators.locality import Overlaps
from moe_probe.analysis.accumulators.set_flows import SetFlows
from moe_probe.analysis.accumulators.structure import (
    FlowCounts,
    PairCounts,
    PositionCounts,
    SlotCounts,
)
from moe_probe.analysis.accumulators.vocabulary import TokenCounts
from moe_probe.analysis.accumulators.windows import WindowCounts
from moe_probe.analysis.accumulators.working_sets import WorkingSets
from moe_probe.analysis.kernels import plain
from moe_probe.analysis.orders import Order
from moe_probe.analysis.rules import Rule
from moe_probe.analysis.scan import scan
from moe_probe.analysis.source import Source
from moe_probe.errors import TraceError
from moe_probe.trace import LayerSpec, TraceWriter, open_trace
from tests.analysis.streams import make_stream

KINDS: list[tuple[type[LayerAccumulator], dict[str, Any]]] = [
    (Counts, {}),
    (SlotCounts, {}),
    (PairCounts, {}),
    (FlowCounts, {}),
    (PositionCounts, {}),
    (Overlaps, {"lags": (1, 3), "other_tokens": True}),
    (DeviceFanout, {"devices": (1, 2, 5)}),
    (SetFlows, {}),
    (TokenCounts, {"token_ids_X": np.arange(4), "most": 10_000}),
    (WorkingSets, {"windows": (1, 3, 7)}),
    (DocumentCounts, {"most": 400}),
    (Gaps, {"most": 400, "windows": (2, 6)}),
]


@cache
def source_of(path: Path) -> Source:
    return Source(make_stream(path, 3, documents=60)[0])


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """A trace of many parts."""
    found = source_of(tmp_path_factory.mktemp("merge") / "trace")
    assert len(found.parts) > 5
    return found


def filled(source: Source, parts: list[int]) -> list[LayerAccumulator]:
    """Scan some parts of a trace."""
    shard = copy.copy(source)
    shard.parts = [source.parts[number] for number in parts]
    found = [kind(source.layers, Rule.UNIQUE, source.index, **options) for kind, options in KINDS]
    scan(shard, found, kernels=plain)
    return found


def assert_same(merged: LayerAccumulator, whole: LayerAccumulator) -> None:
    for layer, arrays in whole.arrays.items():
        for name, array in arrays.items():
            assert merged.arrays[layer][name].tolist() == array.tolist(), (whole.kind, layer, name)


@settings(max_examples=8, deadline=None)
@given(cuts=st.lists(st.integers(0, 8), max_size=3))
def test_shards_in_order(source: Source, cuts: list[int]) -> None:
    """Documents may be cut apart, since parts are; what is first stays first."""
    bounds = [0, *sorted(min(cut, len(source.parts)) for cut in cuts), len(source.parts)]
    whole = filled(source, list(range(len(source.parts))))
    shards = [filled(source, list(range(a, b))) for a, b in itertools.pairwise(bounds)]
    for number, accumulator in enumerate(whole):
        merged = shards[0][number]
        for shard in shards[1:]:
            merged.merge(shard[number])
        if accumulator.kind == "gaps":
            _assert_same_runs(merged, accumulator, whole[0])  # type: ignore[arg-type]
        else:
            assert_same(merged, accumulator)


def _assert_same_runs(merged: Gaps, whole: Gaps, counts: Counts) -> None:
    for layer in whole.layers:
        counts_N = counts.layer(layer).counts_N
        for name in ("canonical", "execution", "request-local", "shuffle-docs:2"):
            order = Order.parse(name)
            found = merged.runs(layer, order, counts_N, plain)
            expected = whole.runs(layer, order, counts_N, plain)
            for field, value in vars(expected).items():
                assert np.array_equal(getattr(found, field), value), (layer, name, field)


@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_sums_do_not_depend_on_order(source: Source, data: st.DataObject) -> None:
    parts = len(source.parts)
    shard_of = data.draw(st.lists(st.integers(0, 2), min_size=parts, max_size=parts))
    whole = filled(source, list(range(parts)))[:-1]
    shards = [filled(source, [p for p in range(parts) if shard_of[p] == s]) for s in range(3)]
    for number, accumulator in enumerate(whole):
        merged = shards[2][number]
        merged.merge(shards[0][number])
        merged.merge(shards[1][number])
        assert_same(merged, accumulator)


def test_files(source: Source, tmp_path: Path) -> None:
    for accumulator in filled(source, [0, 1]):
        path = tmp_path / f"{accumulator.kind}.npz"
        accumulator.save(path)
        loaded = type(accumulator).load(path)
        assert (loaded.layers, loaded.rule) == (accumulator.layers, accumulator.rule)
        assert (loaded.axes, loaded.settings()) == (accumulator.axes, accumulator.settings())
        assert_same(loaded, accumulator)
        loaded.merge(accumulator)
    with pytest.raises(TraceError, match="is not a file of counts"):
        Counts.load(tmp_path / "pairs.npz")
    (tmp_path / "bad.npz").write_bytes(b"no")
    with pytest.raises(TraceError, match="is not a file of counts"):
        Counts.load(tmp_path / "bad.npz")


def test_traces_of_other_subjects_and_documents(tmp_path: Path) -> None:
    spec = LayerSpec(layer=0, num_experts=4, top_k=1)
    documents = {
        "a": [("law", 3, [0, 1]), ("law", 1, [2])],
        "b": [("art", 0, [3, 3]), ("law", 3, [1])],
    }

    def scanned(name: str, found: list[tuple[str, int, list[int]]]) -> list[Any]:
        with TraceWriter(tmp_path / name, layers=[spec]) as writer:
            for subject, doc_id, ids in found:
                writer.add([np.array(ids)[:, None]], subject=subject, doc_id=doc_id)
        source = Source(open_trace(tmp_path / name))
        options: list[Any] = [{}, {"most": 5}, {"most": 5, "windows": (1,)}]
        kinds: list[Any] = [Counts, DocumentCounts, Gaps]
        made = [
            k({0: spec}, Rule.UNIQUE, source.index, **o)
            for k, o in zip(kinds, options, strict=True)
        ]
        scan(source, made, kernels=plain)
        return made

    counts, by_document, gaps = scanned("a", documents["a"])
    others = scanned("b", documents["b"])
    for accumulator, other in zip((counts, by_document, gaps), others, strict=True):
        accumulator.merge(other)
    law = counts.layer(0, lambda stratum: stratum.subject == "law")
    assert (law.counts_N.tolist(), law.tokens) == ([1, 2, 1, 0], 4)
    names = [key.split("\x1f")[1:5:3] for key in by_document.axes.clusters]
    found = by_document.arrays[0]["counts_CN"].tolist()
    assert sorted(zip(names, found, strict=True)) == [
        (["art", "0"], [0, 0, 0, 2]),
        (["law", "1"], [0, 0, 1, 0]),
        (["law", "3"], [1, 2, 0, 0]),
    ]
    runs = gaps.runs(0, Order("execution"), counts.layer(0).counts_N, plain)
    assert runs.tokens == 6


def test_moments_of_disjoint_documents_add_up() -> None:
    rng = np.random.default_rng(0)
    counts_CN, tokens_C = rng.integers(0, 9, (20, 3)), rng.integers(0, 9, 20)
    group_C = rng.integers(0, 4, 20)
    whole = cluster_moments(counts_CN, tokens_C, group_C, 4)
    left = cluster_moments(counts_CN[:7], tokens_C[:7], group_C[:7], 4)
    right = cluster_moments(counts_CN[7:], tokens_C[7:], group_C[7:], 4)
    for name, array in vars(whole).items():
        assert np.array_equal(getattr(left.merged(right), name), array), name


def test_other_layers_or_rules_do_not_merge(source: Source) -> None:
    counts = Counts(source.layers, Rule.UNIQUE, source.index)
    with pytest.raises(ValueError, match="different layers or rules"):
        counts.merge(Counts(source.layers, Rule.RAW, source.index))
    with pytest.raises(ValueError, match="different layers or rules"):
        counts.merge(Counts({}, Rule.UNIQUE, source.index))


@settings(max_examples=8, deadline=None)
@given(cuts=st.lists(st.integers(0, 8), max_size=3))
def test_windows_of_shards_are_joined_in_order(source: Source, cuts: list[int]) -> None:
    """Each shard's full windows, one after the other; what is left of a shard is lost."""

    def windows(parts: list[Any]) -> WindowCounts:
        shard = copy.copy(source)
        shard.parts = parts
        found = WindowCounts(source.layers, Rule.UNIQUE, source.index, window=16)
        scan(shard, [found], kernels=plain)
        return found

    bounds = [0, *sorted(min(cut, len(source.parts)) for cut in cuts), len(source.parts)]
    shards = [windows(source.parts[a:b]) for a, b in itertools.pairwise(bounds)]
    expected = {n: np.concatenate([shard.full(n) for shard in shards]) for n in source.layers}
    merged = shards[0]
    for shard in shards[1:]:
        merged.merge(shard)
    for layer in source.layers:
        assert merged.full(layer).tolist() == expected[layer].tolist()
        assert len(merged.full(layer)) > 5
