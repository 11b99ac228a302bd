"""Experts used by forward passes, and idle runs in them, against loops over lists of passes.

Shape suffixes: N experts of a layer, P passes, V words of 64 experts, W windows.
"""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_probe.analysis.accumulators.pass_experts import PassExperts
from moe_probe.analysis.kernels import plain
from moe_probe.analysis.reading.passes import PassTable
from moe_probe.analysis.reading.rules import Rule
from moe_probe.analysis.reading.source import Source
from moe_probe.analysis.scan import scan
from moe_probe.errors import UsageError
from moe_probe.trace import LayerSpec, TraceWriter, open_trace
from tests.analysis.pass_streams import LAYERS, NEVER, make_passes, naive_runs

WINDOWS = (2, 5, 9)


def scanned(source: Source, parts: list[int] | None = None) -> PassExperts:
    """Scan a trace, or some parts of it."""
    shard = copy.copy(source)
    shard.parts = [source.parts[n] for n in parts] if parts is not None else source.parts
    table = PassTable.of(shard, Rule.UNIQUE)
    found = PassExperts(source.layers, Rule.UNIQUE, source.index, table=table)
    scan(shard, [found], kernels=plain)
    return found


def assert_same(one: PassExperts, other: PassExperts) -> None:
    assert one.streams == other.streams
    for layer, arrays in other.arrays.items():
        for name, array in arrays.items():
            assert one.arrays[layer][name].tolist() == array.tolist(), (layer, name)


@pytest.mark.parametrize("ranks", [1, 3])
def test_runs_of_every_expert(tmp_path: Path, ranks: int) -> None:
    used, tokens = make_passes(tmp_path / "trace", ranks, ranks=ranks)
    found = scanned(Source(open_trace(tmp_path / "trace")))
    assert found.table(0).tokens_P.tolist() == [tokens[key] for key in sorted(tokens)]
    for spec in LAYERS:
        runs = found.runs(spec.layer, WINDOWS)
        assert runs.passes == len(used)
        for expert in range(spec.num_experts):
            streams = naive_runs(used, spec.layer, expert)
            every = [run for stream in streams for run in stream]
            assert runs.longest_N[expert] == max(every)
            assert runs.leading_N[expert] == max(stream[0] for stream in streams)
            assert runs.current_N[expert] == max(stream[-1] for stream in streams)
            for w, window in enumerate(WINDOWS):
                long = [run for run in every if run >= window]
                assert runs.runs_WN[w, expert] == len(long)
                assert runs.idle_passes_WN[w, expert] == sum(long)
                assert runs.sliding_WN[w, expert] == sum(run - window + 1 for run in long)
        longest = max(sum(1 for rank, _ in used if rank == one) for one in range(ranks))
        assert runs.longest_N[NEVER] == longest


def test_bits_are_the_experts(tmp_path: Path) -> None:
    used, _ = make_passes(tmp_path / "trace", 5)
    found = scanned(Source(open_trace(tmp_path / "trace")))
    for spec in LAYERS:
        words_PV = found.arrays[spec.layer]["used_PV"].tolist()
        assert len(words_PV[0]) == -(-spec.num_experts // 64)
        sets = [
            {v * 64 + bit for v, word in enumerate(words) for bit in range(64) if word >> bit & 1}
            for words in words_PV
        ]
        assert sets == [used[key][spec.layer] for key in sorted(used)]


@cache
def many_parts(path: Path) -> tuple[Source, PassExperts]:
    """A trace whose passes are spread over its parts, and the whole of it."""
    make_passes(path, 11, documents=80, passes=12)
    source = Source(open_trace(path))
    return source, scanned(source)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("passes") / "trace"


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_shards_join_in_any_order(path: Path, data: st.DataObject) -> None:
    source, whole = many_parts(path)
    parts = len(source.parts)
    assert parts > 8
    assert len(whole.table(0).key_P) == 24, "every pass has rows in many parts"
    shard_of = data.draw(st.lists(st.integers(0, 2), min_size=parts, max_size=parts))
    shards = [scanned(source, [p for p in range(parts) if shard_of[p] == s]) for s in range(3)]
    first, *others = data.draw(st.permutations(shards))
    for other in others:
        first.merge(other)
    assert_same(first, whole)


def test_files(path: Path, tmp_path: Path) -> None:
    source, whole = many_parts(path)
    half, rest = scanned(source, [0, 3]), scanned(source, [1, 2, *range(4, len(source.parts))])
    half.save(tmp_path / "half.npz")
    loaded = PassExperts.load(tmp_path / "half.npz")
    assert_same(loaded, half)
    loaded.merge(rest)
    assert_same(loaded, whole)
    other = PassExperts(
        {0: LAYERS[0]}, Rule.UNIQUE, source.index, table=PassTable.of(source, Rule.UNIQUE)
    )
    with pytest.raises(ValueError, match="different layers"):
        loaded.merge(other)


def test_equal_ranks_of_two_recordings_are_two_streams(tmp_path: Path) -> None:
    """Pass 0 of the one is not pass 0 of the other."""
    both = [make_passes(tmp_path / name, seed, ranks=1)[0] for seed, name in enumerate("ab")]
    found, other = (scanned(Source(open_trace(tmp_path / name))) for name in "ab")
    found.merge(other)
    runs = found.runs(0, WINDOWS)
    assert runs.passes == sum(map(len, both))
    for expert in range(LAYERS[0].num_experts):
        every = [run for used in both for run in naive_runs(used, 0, expert)[0]]
        assert runs.longest_N[expert] == max(every)
        assert runs.runs_WN[0, expert] == sum(run >= WINDOWS[0] for run in every)


def write(path: Path, facts: list[tuple[list[int], Any]]) -> Source:
    with TraceWriter(path, layers=[LayerSpec(layer=0, num_experts=3, top_k=1)]) as writer:
        for number, (ids, passes) in enumerate(facts):
            writer.add([np.array(ids)[:, None]], task="t", doc_id=number, forward_passes=passes)
    return Source(open_trace(path))


def test_one_pass(tmp_path: Path) -> None:
    runs = scanned(write(tmp_path / "trace", [([0, 1, 1], 7)])).runs(0, (1, 2))
    assert (runs.passes, runs.longest_N.tolist()) == (1, [0, 0, 1])
    assert (runs.leading_N.tolist(), runs.current_N.tolist()) == ([0, 0, 1], [0, 0, 1])
    assert runs.runs_WN.tolist() == [[0, 0, 1], [0, 0, 0]]


def test_no_pass(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "trace", layers=[LAYERS[0]]) as writer:
        writer.add([np.array([[0]])], forward_passes=0, new_from=-1)
    runs = scanned(Source(open_trace(tmp_path / "trace"))).runs(0, (1,))
    assert (runs.passes, runs.longest_N.tolist(), runs.runs_WN.sum()) == (0, [0] * 5, 0)


def test_passes_that_only_some_rows_know_are_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "some", [([0, 1, 2], [0, -1, 1]), ([0], 4)])
    with pytest.raises(UsageError, match=r"of 4 tokens of .* rule unique counts 1 do not say it"):
        PassTable.of(source, Rule.UNIQUE)
    # What does not count need not say it.
    assert len(PassTable.of(source, Rule.DECISION).key_P) == 2
    with pytest.raises(UsageError, match=r"counts 4 do not say it\. Record again"):
        PassTable.of(write(tmp_path / "none", [([0, 1, 2], None), ([0], None)]), Rule.UNIQUE)


def test_rows_that_several_passes_ran_are_refused(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "trace", layers=[LAYERS[0]]) as writer:
        writer.add([np.array([[0], [1]])], multiplicity=3, forward_passes=0)
    source = Source(open_trace(tmp_path / "trace"))
    table = PassTable.of(source, Rule.RAW)
    found = PassExperts(source.layers, Rule.RAW, source.index, table=table)
    with pytest.raises(UsageError, match="several of them ran, and the rule raw counts"):
        scan(source, [found], kernels=plain)
