"""Several processes write one trace: nothing is lost, counted twice, or settled too early."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from moe_probe.trace import Trace, TraceWriter, open_trace
from tests.trace.rank_child import prompt
from tests.trace.recordings import (
    LAYERS,
    Recording,
    forward_passes,
    stored_passes,
    stored_rows,
    table_counts,
    write,
)

ROOT = Path(__file__).parents[2]
Child = subprocess.Popen[bytes]


def start(path: Path, rank: int, count: int = -1, *steps: str) -> Child:
    arguments = [str(path), f"{path}.side{rank}", str(rank), str(count), *steps]
    return subprocess.Popen([sys.executable, "-m", "tests.trace.rank_child", *arguments], cwd=ROOT)


def accepted(path: Path, rank: int) -> set[int]:
    side = Path(f"{path}.side{rank}")
    lines = side.read_bytes().splitlines(keepends=True) if side.exists() else []
    return {int(line) for line in lines if line.endswith(b"\n")}


def wait_for_more(path: Path, rank: int, child: Child, more: int = 1) -> None:
    before = len(accepted(path, rank))
    while len(accepted(path, rank)) < before + more:
        assert child.poll() is None
        time.sleep(0.005)


def kill(child: Child) -> None:
    os.kill(child.pid, signal.SIGKILL)
    child.wait()


def check(path: Path, status: str) -> Trace:
    """Compare a trace with what its ranks say they wrote, and with one writer of all that."""
    trace = open_trace(path)
    assert (trace.run["status"], trace.is_recording) == (status, False)
    numbers = trace.sequences["sequence_id"].to_pylist()
    assert len(set(numbers)) == len(numbers)
    assert set().union(*(accepted(path, rank) for rank in range(3))) <= set(numbers)
    recording = Recording(path, LAYERS, [prompt(number) for number in numbers])
    expected = {}
    for known in recording.prompts:
        sequence = known.sequence
        for position in range(sequence.prefix_tokens, sequence.num_tokens):
            ids = [np.where(x[position] < 0, 255, x[position]).tolist() for x in known.ids]
            expected[sequence.sequence_id, position] = (position + 1000, *ids)
    assert stored_rows(trace) == expected
    passes = {key: forward_passes(prompt(key[0]).sequence)[key[1]] for key in expected}
    assert stored_passes(trace) == passes
    alone = path.with_name(f"{path.name}-alone")
    with TraceWriter(alone, layers=LAYERS, force=True) as writer:
        for known in recording.prompts:
            known.sequence.sequence_id = writer.next_sequence_id()
            write(writer, known, share=False)
    assert table_counts(trace) == table_counts(open_trace(alone))
    logliks = dict(zip(numbers, trace.sequences["choice_logliks"].to_pylist(), strict=True))
    known_ids = set().union(*(accepted(path, rank) for rank in range(3)))
    assert all(logliks[number] == [-float(number)] for number in known_ids)
    folders = ["counts", "routing", "run.json", "sequences"]
    assert sorted(entry.name for entry in path.iterdir()) == folders
    return trace


def test_three_ranks_at_once(tmp_path: Path) -> None:
    path = tmp_path / "t"
    children = [start(path, rank, count) for rank, count in enumerate((30, 45, 60))]
    seen = set()
    while any(child.poll() is None for child in children):
        if (path / "run.json").exists():
            trace = open_trace(path)
            seen.add((trace.is_recording, trace.run["status"]))
    assert [child.wait() for child in children] == [0, 0, 0]
    assert (True, "running") in seen
    trace = check(path, "complete")
    assert trace.run["written"] == 135
    assert {rank: e["written"] for rank, e in trace.run["ranks"].items()} == {
        "0": 30,
        "1": 45,
        "2": 60,
    }
    assert trace.run["writer"]["tokens"] == len(stored_rows(trace))


def test_kills_of_ranks_while_others_go_on(tmp_path: Path) -> None:
    chance, path = np.random.default_rng(0), tmp_path / "t"
    children = [start(path, rank) for rank in range(3)]
    for rank, child in enumerate(children):
        wait_for_more(path, rank, child)
    for _ in range(6):
        rank = int(chance.integers(3))
        wait_for_more(path, rank, children[rank], 3)
        time.sleep(chance.uniform(0, 0.1))
        kill(children[rank])
        other = (rank + 1) % 3
        wait_for_more(path, other, children[other])
        assert open_trace(path).is_recording
        children[rank] = start(path, rank)
        wait_for_more(path, rank, children[rank])
    for child in children:
        kill(child)
    trace = check(path, "killed")
    assert {entry["status"] for entry in trace.run["ranks"].values()} == {"killed"}
    # The same group again, all dead: its ranks go on where they were, whatever `force` says.
    again = [start(path, rank, 10) for rank in range(3)]
    assert [child.wait() for child in again] == [0, 0, 0]
    check(path, "complete")


def test_the_last_rank_recovers_one_that_was_killed(tmp_path: Path) -> None:
    path = tmp_path / "t"
    killed = start(path, 2)
    wait_for_more(path, 2, killed, 20)
    others = [start(path, 0, 100), start(path, 1)]
    wait_for_more(path, 1, others[1])
    kill(killed)
    assert others[0].wait() == 0
    assert open_trace(path).run["status"] == "running"
    kill(others[1])
    last = start(path, 1, 20)
    assert last.wait() == 0
    trace = check(path, "killed")
    statuses = {rank: entry["status"] for rank, entry in trace.run["ranks"].items()}
    assert statuses == {"0": "complete", "1": "complete", "2": "killed"}


def test_a_kill_of_the_last_rank_as_it_settles(tmp_path: Path) -> None:
    path = tmp_path / "t"
    child = start(path, 0, 40, "settle_table:after:sequences")
    assert child.wait() == -signal.SIGKILL
    trace = check(path, "killed")
    assert (trace.run["ranks"]["0"]["status"], trace.run["ranks"]["0"]["written"]) == (
        "complete",
        40,
    )
    assert start(path, 1, 10).wait() == 0
    assert check(path, "complete").run["written"] == 50


def test_a_rank_that_comes_when_all_have_ended(tmp_path: Path) -> None:
    path = tmp_path / "t"
    assert start(path, 0, 20).wait() == 0
    check(path, "complete")
    assert start(path, 1, 30).wait() == 0
    trace = check(path, "complete")
    assert trace.sequences.num_rows == trace.run["written"] == 50
    assert list(trace.run["ranks"]) == ["0", "1"]
