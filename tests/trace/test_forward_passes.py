"""Each stored row says which forward pass ran it, however the row came to disk."""

from __future__ import annotations

import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_probe.trace import Sequence, Trace, TraceWriter, open_trace
from moe_probe.trace.staging import Segment
from tests.trace.recordings import forward_passes, record, stored_passes
from tests.trace.small import LAYER
from tests.trace.unfinished import abandoned

_MOST = 2**31 - 1


def add(writer: TraceWriter, tokens: int, passes: Any) -> int:
    return writer.add([np.zeros((tokens, 1), int)], forward_passes=passes)


def in_order(trace: Trace) -> list[int]:
    return list(stored_passes(trace).values())


def test_rows_of_a_recording_keep_their_passes(tmp_path: Path) -> None:
    recording = record(tmp_path / "t", 3, capture="weights", cache=True)
    expected = {
        (prompt.sequence.sequence_id, position): number
        for prompt in recording.prompts
        for position, number in enumerate(forward_passes(prompt.sequence).tolist())
        if position >= prompt.sequence.prefix_tokens
    }
    assert stored_passes(open_trace(tmp_path / "t")) == expected
    assert {-1, 1, 2} < set(expected.values())


@settings(max_examples=25, deadline=None)
@given(
    given_passes=st.lists(
        st.one_of(
            st.lists(st.integers(-1, _MOST), min_size=1, max_size=9),
            st.tuples(st.integers(1, 9), st.one_of(st.none(), st.integers(-1, _MOST))),
        ),
        min_size=1,
        max_size=8,
    ),
    is_killed=st.booleans(),
)
def test_passes_survive_staging_and_recovery(given_passes: list[Any], is_killed: bool) -> None:
    expected: list[int] = []
    with TemporaryDirectory() as folder:
        writer = TraceWriter(Path(folder) / "t", layers=[LAYER], segment_tokens=12)
        for each in given_passes:
            if isinstance(each, list):
                add(writer, len(each), np.array(each))
                expected += each
            else:
                tokens, number = each
                add(writer, tokens, number)
                expected += [-1 if number is None else number] * tokens
        if is_killed:
            writer._spool._full.put(None)
            writer._spool._thread.join()
            writer._closing.close()
        else:
            writer.close()
        trace = open_trace(Path(folder) / "t")
        assert trace.run["status"] == ("killed" if is_killed else "complete")
        assert in_order(trace) == expected


def test_staging_of_an_earlier_version_is_recovered_without(tmp_path: Path) -> None:
    with abandoned(tmp_path / "t"):
        pass
    finished = len(in_order(Trace(*_unopened(tmp_path / "t"), is_recording=True)))
    for path in (tmp_path / "t" / "stage").iterdir():
        _age(path)
    passes = in_order(open_trace(tmp_path / "t"))
    assert 0 < finished < len(passes)
    assert max(passes[:finished]) > 0
    assert set(passes[finished:]) == {-1}


def _unopened(path: Path) -> tuple[Any, Any]:
    from moe_probe.trace.files import TraceFiles, read_run

    files = TraceFiles(path)
    return files, read_run(files)


def _age(path: Path) -> None:
    """Make a staging file what a moe-probe without forward passes would have left."""
    segment = Segment.open(path)
    assert segment is not None
    with open(path, "r+b") as file:
        file.seek(24)
        length = int.from_bytes(file.read(8), "little")
        file.seek(4096)
        header = json.loads(file.read(length))
        assert header.pop("forward_passes")
        text = json.dumps(header).encode()
        file.seek(24)
        file.write(len(text).to_bytes(8, "little"))
        file.seek(4096)
        file.write(text)
    os.truncate(path, path.stat().st_size - 2 * 4096)


def test_a_part_without_the_column_says_unknown(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "t", layers=[LAYER], segment_tokens=4) as writer:
        for number in range(3):
            add(writer, 4, number)
    path = open_trace(tmp_path / "t").routing_parts[1]
    pq.write_table(pq.read_table(path).drop_columns("forward_pass"), path)
    trace = open_trace(tmp_path / "t")
    assert in_order(trace) == [0] * 4 + [-1] * 4 + [2] * 4
    assert trace.to_pandas()["forward_pass"].tolist() == in_order(trace)
    with TraceWriter(tmp_path / "t", layers=[LAYER], resume=True) as writer:
        assert writer.first_forward_pass == 3


def test_passes_are_read_only_when_asked_for(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "t", layers=[LAYER]) as writer:
        add(writer, 4, 7)
    trace = open_trace(tmp_path / "t")
    names = [
        trace.read_identity(trace.routing_parts[0], **asked).table.column_names
        for asked in ({}, {"token_ids": True}, {"forward_passes": True})
    ]
    assert [name[2:] for name in names] == [[], ["token_id"], ["forward_pass"]]
    assert trace.read_layers(trace.routing_parts[0], [0]).table.column_names == ["L00"]


def test_a_resumed_writer_counts_on_and_ranks_count_alone(tmp_path: Path) -> None:
    for rank, passes in ((0, [5, 41, -1]), (1, [8, 2])):
        resume = rank > 0
        with TraceWriter(
            tmp_path / "t", layers=[LAYER], segment_tokens=2, rank=rank, resume=resume
        ) as writer:
            assert writer.first_forward_pass == 0
            for number in passes:
                add(writer, 2, number)
    for rank, first in ((0, 42), (1, 9), (2, 0)):
        writer = TraceWriter(tmp_path / "t", layers=[LAYER], rank=rank, resume=True)
        assert writer.first_forward_pass == first
        writer.close()


def test_a_killed_writer_is_resumed_after_what_it_staged(tmp_path: Path) -> None:
    writer = TraceWriter(tmp_path / "t", layers=[LAYER])
    add(writer, 2, 11)
    writer._closing.close()
    with TraceWriter(tmp_path / "t", layers=[LAYER], resume=True) as writer:
        assert writer.first_forward_pass == 12


@pytest.mark.parametrize(
    ("passes", "message"),
    [
        (np.zeros(2, int), r"\(2,\) forward passes for 3 rows"),
        (np.zeros((3, 1), int), r"\(3, 1\) forward passes for 3 rows"),
        (np.zeros(3), "from 0.0 to 0.0 of type float64"),
        (np.array([0, -2, 5]), "from -2 to 5"),
        (1 << 31, "from 2147483648 to 2147483648"),
    ],
)
def test_impossible_passes_are_refused(tmp_path: Path, passes: Any, message: str) -> None:
    with TraceWriter(tmp_path / "t", layers=[LAYER]) as writer:
        sequence = Sequence(sequence_id=writer.next_sequence_id(), num_tokens=3)
        with pytest.raises(ValueError, match=f"sequence 0: .*{message}"):
            writer.write(sequence, np.zeros((3, 1), np.uint8), forward_pass_T=passes)
    assert open_trace(tmp_path / "t").sequences.num_rows == 0
