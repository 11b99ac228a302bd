"""Accumulators of shards join to that of the whole, however the shards are cut, also from files."""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_probe.analysis.accumulators.base import LayerAccumulator
from moe_probe.analysis.accumulators.counts import Counts
from moe_probe.analysis.accumulators.document_sums import DocumentMoments, Replicates
from moe_probe.analysis.accumulators.documents import DocumentCounts, cluster_moments
from moe_probe.analysis.accumulators.gaps import Gaps
from moe_probe.analysis.accumulators.locality import BatchStats, Overlaps
from moe_probe.analysis.accumulators.repeats import Repeats
from moe_probe.analysis.accumulators.rows import RowFaults
from moe_probe.analysis.accumulators.weight_faults import WeightFaults
from moe_probe.analysis.kernels import plain
from moe_probe.analysis.reading.orders import Order
from moe_probe.analysis.reading.passes import PassTable
from moe_probe.analysis.reading.rules import Rule
from moe_probe.analysis.reading.source import Source
from moe_probe.analysis.scan import scan
from moe_probe.analysis.statistics.clusters import poisson_weights
from moe_probe.errors import TraceError
from moe_probe.trace import LayerSpec, TraceWriter, open_trace
from tests.analysis.accumulators.shards import (
    IN_ORDER,
    LARGE,
    SMALL,
    Stream,
    assert_same,
    filled,
    write,
)
from tests.analysis.streams import make_stream

Shard = dict[str, Any]
EXAMPLES = settings(max_examples=8, deadline=None)
GENERATORS = st.integers(0, 2**32).map(np.random.default_rng)
every_rule = pytest.mark.parametrize("rule", list(Rule))


@pytest.fixture(scope="module")
def streams(tmp_path_factory: pytest.TempPathFactory) -> list[Stream]:
    """Traces of few and of many experts, of one document, and of one expert per token."""
    path = tmp_path_factory.mktemp("merge")
    shapes = [(14, SMALL), (14, SMALL), (7, LARGE), (1, SMALL), (12, SMALL[1:2])]
    found = [Stream.of(path / f"{n}", n, *shape) for n, shape in enumerate(shapes)]
    assert all(len(stream.parts) > 4 for stream in found if stream is not found[3])
    return found


@pytest.fixture(scope="module")
def from_file(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Any], Any]:
    """Write an accumulator to a file and read it, of whatever kind."""
    path = tmp_path_factory.mktemp("files") / "shard.npz"

    def through(accumulator: Any) -> Any:
        accumulator.save(path)
        return type(accumulator).load(path)

    return through


def merged(shards: list[Any], rng: np.random.Generator, from_file: Callable[[Any], Any]) -> Any:
    """Merge neighbours, whichever first, until one is left; some go through a file before."""
    while len(shards) > 1:
        place = int(rng.integers(len(shards) - 1))
        if rng.random() < 0.3:
            shards[place : place + 2] = map(from_file, shards[place : place + 2])
        shards[place].merge(shards.pop(place + 1))
    return from_file(shards[0]) if rng.random() < 0.3 else shards[0]


@every_rule
@EXAMPLES
@given(rng=GENERATORS)
def test_shards_in_order_of_recording(
    streams: list[Stream],
    from_file: Callable[[Any], Any],
    rule: Rule,
    rng: np.random.Generator,
) -> None:
    """Parts are cut anywhere, so a document may lie in several shards; some shards are empty."""
    stream = streams[rng.integers(len(streams))]
    parts = len(stream.parts)
    starts = [block[0] for block in stream.documents(rule)]
    inside = sorted({*stream.parts} - {*starts})
    at_documents = not inside or rng.random() < 0.5
    cuts = rng.choice(starts, 2) if at_documents else [rng.choice(inside), rng.integers(parts + 1)]
    bounds = [0, *sorted(map(int, cuts)), parts]
    shards = [stream.filled(rule, range(a, b), first=a) for a, b in itertools.pairwise(bounds)]
    whole = stream.filled(rule, stream.parts)
    for kind in whole.keys() - (set() if at_documents else {"moments"}):
        found = merged([shard[kind] for shard in shards], rng, from_file)
        assert_same(found, whole[kind], whole["counts"])


@every_rule
@pytest.mark.parametrize("documents", [True, False], ids=["documents", "parts"])
@EXAMPLES
@given(rng=GENERATORS)
def test_shards_in_any_order(
    streams: list[Stream],
    from_file: Callable[[Any], Any],
    rule: Rule,
    documents: bool,
    rng: np.random.Generator,
) -> None:
    """Whole documents, or any parts, are dealt to shards that are merged in any order."""
    stream = streams[rng.integers(len(streams))]
    blocks = stream.documents(rule) if documents else [[part] for part in stream.parts]
    shard_of = rng.integers(0, 3, len(blocks)).tolist()
    dealt = [
        [
            part
            for block, shard in zip(blocks, shard_of, strict=True)
            if shard == s
            for part in block
        ]
        for s in rng.permutation(3).tolist()
    ]
    shards = [stream.filled(rule, parts) for parts in dealt]
    whole = stream.filled(rule, stream.parts)
    for kind in whole.keys() - {*IN_ORDER, *(() if documents else ("gaps", "moments"))}:
        found = merged([shard[kind] for shard in shards], rng, from_file)
        assert_same(found, whole[kind], whole["counts"])


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Rule], tuple[Shard, list[Shard]]]:
    """One trace of nine documents, and one of each, scanned."""
    path = tmp_path_factory.mktemp("traces")
    documents = range(9)
    for name, some in [("all", documents), *((f"{n}", [n]) for n in documents)]:
        write(path / name, 5, list(some), layers=SMALL)
    opened = [Source(open_trace(path / name)) for name in ("all", *map(str, documents))]
    scanned: dict[Rule, tuple[Shard, list[Shard]]] = {}

    def scan_all(rule: Rule) -> tuple[Shard, list[Shard]]:
        if rule not in scanned:
            flows = Stream(opened[0]).flows(rule)
            whole, *shards = (
                filled(source, rule, flows, PassTable.of(source, rule)) for source in opened
            )
            scanned[rule] = whole, shards
        return copy.deepcopy(scanned[rule])

    return scan_all


@pytest.mark.parametrize("rule", [rule for rule in Rule if rule is not Rule.NO_TEMPLATE])
@EXAMPLES
@given(rng=GENERATORS)
def test_traces_of_some_documents_each(
    traces: Callable[[Rule], tuple[Shard, list[Shard]]],
    from_file: Callable[[Any], Any],
    rule: Rule,
    rng: np.random.Generator,
) -> None:
    """Every shard knows its own subject and document only, and what the template is, not at all."""
    whole, shards = traces(rule)
    order = [shards[number] for number in rng.permutation(len(shards))]
    # Streams of passes and repeated prompts are those of one recording.
    for kind in whole.keys() - {*IN_ORDER, "passes", "pass_loads", "repeats"}:
        found = merged([shard[kind] for shard in order], rng, from_file)
        assert_same(found, whole[kind], whole["counts"])


@pytest.mark.parametrize("rule", [Rule.UNIQUE, Rule.RAW])
def test_files(streams: list[Stream], tmp_path: Path, rule: Rule) -> None:
    filled = streams[0].filled(rule, [0, 1])
    assert len(filled) >= 20
    for kind, accumulator in filled.items():
        accumulator.save(tmp_path / f"{kind}.npz")
        loaded = type(accumulator).load(tmp_path / f"{kind}.npz")
        assert loaded.layers == accumulator.layers
        assert_same(loaded, accumulator, filled["counts"])
        if not isinstance(accumulator, LayerAccumulator):
            continue
        assert (loaded.rule, loaded.axes) == (accumulator.rule, accumulator.axes)
        assert loaded.settings() == accumulator.settings()
        for layer, arrays in accumulator.arrays.items():
            assert [a.dtype for a in loaded.arrays[layer].values()] == [
                a.dtype for a in arrays.values()
            ]
    with pytest.raises(TraceError, match="is not a file of counts"):
        Counts.load(tmp_path / "pairs.npz")
    (tmp_path / "bad.npz").write_bytes(b"no")
    with pytest.raises(TraceError, match="is not a file of counts"):
        Counts.load(tmp_path / "bad.npz")
    for other in (Repeats, RowFaults, WeightFaults):
        with pytest.raises(TraceError, match=f"is not a file of {other.kind}: it holds counts"):
            other.load(tmp_path / "counts.npz")


def test_damaged_files(streams: list[Stream], tmp_path: Path) -> None:
    """Cut short anywhere, or with a bit that fell over: refused, or the same as before."""
    path, rng = tmp_path / "shard.npz", np.random.default_rng(0)
    whole = streams[0].filled(Rule.UNIQUE, [0, 1])
    for kind in ("counts", "repeats"):
        whole[kind].save(path)
        data = path.read_bytes()
        damaged = [data[: int(stop)] for stop in (0, 1, *rng.integers(len(data), size=20))]
        for place in rng.integers(len(data), size=60).tolist():
            flipped = bytes([data[place] ^ 1 << int(rng.integers(8))])
            damaged.append(data[:place] + flipped + data[place + 1 :])
        said = []
        for number, found in enumerate(damaged):
            path.write_bytes(found)
            try:
                loaded = type(whole[kind]).load(path)
            except TraceError as error:
                said.append(str(error))
            else:
                assert number >= 22
                assert_same(loaded, whole[kind], whole["counts"])
        assert len(said) > 60
        assert all(re.search(rf"is not a file of {kind}: .*\w", text) for text in said)


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


def test_sums_over_documents(tmp_path: Path) -> None:
    """S15 and S16 are what the table of documents gives."""
    source = Source(make_stream(tmp_path / "trace", 1)[0])
    facts: Any = (source.layers, Rule.UNIQUE, source.index)
    documents = DocumentCounts(*facts, most=400)
    moments, replicates = DocumentMoments(*facts, most=400), Replicates(*facts, replicates=9)
    scan(source, [documents, moments, replicates], kernels=plain)
    clusters = source.index.clusters
    weights_BC = poisson_weights(clusters.keys, 9).astype(int)
    for layer in source.layers:
        counts_CN, tokens_C = (documents.arrays[layer][n] for n in ("counts_CN", "tokens_C"))
        expected = vars(cluster_moments(counts_CN, tokens_C, clusters.group_C, 2))
        for name, array in vars(moments.moments(layer)).items():
            assert array.tolist() == expected[name].tolist(), name
        found = replicates.arrays[layer]
        assert found["replicates_BN"].tolist() == (weights_BC @ counts_CN).tolist()
        assert found["tokens_B"].tolist() == (weights_BC @ tokens_C).tolist()


def test_shards_that_do_not_follow_one_another(tmp_path: Path) -> None:
    source = Source(make_stream(tmp_path / "trace", 1)[0])
    facts: Any = (source.layers, Rule.UNIQUE, source.index)
    first, second = (BatchStats(*facts, sizes=(5, 20)) for _ in range(2))
    scan(source, [first], kernels=plain)
    tokens = int(first.arrays[1]["bounds"][1])
    with pytest.raises(ValueError, match=f"fill it with before={tokens}"):
        first.merge(second)


def test_other_layers_rules_or_settings_do_not_merge(tmp_path: Path) -> None:
    source = Source(make_stream(tmp_path / "trace", 1)[0])
    counts = Counts(source.layers, Rule.UNIQUE, source.index)
    with pytest.raises(ValueError, match="different layers or rules"):
        counts.merge(Counts(source.layers, Rule.RAW, source.index))
    with pytest.raises(ValueError, match="different layers or rules"):
        counts.merge(Counts({}, Rule.UNIQUE, source.index))
    lags = [Overlaps(source.layers, Rule.UNIQUE, source.index, lags=lags) for lags in [(1,), (2,)]]
    with pytest.raises(ValueError, match=r"overlaps with .*'lags': \(1,\).* and with .*\(2,\)"):
        lags[0].merge(lags[1])
