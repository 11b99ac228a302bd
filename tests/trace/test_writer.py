"""What TraceWriter accepts, where parts end, and what a trace says in the end."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe_probe.trace import Sequence, TraceWriter, open_trace, parts
from moe_probe.trace import spool as spool_module
from tests.trace.recordings import stored_rows
from tests.trace.small import LAYER, add, part_lengths


@pytest.mark.parametrize(
    ("lengths", "parts"),
    [([5, 5], [10]), ([10, 10], [10, 10]), ([6, 5, 4], [6, 9]), ([1] * 21, [10, 10, 1]), ([], [])],
)
def test_a_sequence_never_straddles_parts(
    tmp_path: Path, lengths: list[int], parts: list[int]
) -> None:
    with TraceWriter(tmp_path / "t", layers=[LAYER], segment_tokens=10) as writer:
        for length in lengths:
            add(writer, length)
    assert part_lengths(tmp_path / "t") == parts
    assert len(stored_rows(open_trace(tmp_path / "t"))) == sum(lengths)
    assert writer.stats.parts == len(parts)


def test_too_long_a_sequence_is_refused_and_the_rest_is_kept(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "t", layers=[LAYER], segment_tokens=10) as writer:
        add(writer, 4)
        with pytest.raises(ValueError, match="has 11 tokens, more than the 10 of a segment"):
            add(writer, 11)
        with pytest.raises(ValueError, match="is more than a segment can hold"):
            writer.answer(0, 0, response="x" * (9 << 20))
        add(writer, 6)
    assert part_lengths(tmp_path / "t") == [10] or part_lengths(tmp_path / "t") == [4, 6]


@pytest.mark.parametrize(
    ("facts", "ids_TB", "more", "message"),
    [
        ({"num_tokens": 3}, np.zeros((2, 1), np.uint8), {}, "has 3 tokens, 0 of them shared"),
        ({"num_tokens": 2}, np.zeros((2, 2), np.uint8), {}, "expected uint8"),
        ({"num_tokens": 2}, np.zeros((2, 1), np.int64), {}, "packed ids are int64"),
        (
            {"num_tokens": 2},
            np.zeros((2, 1), np.uint8),
            {"token_id_T": np.zeros(3)},
            r"\(3,\) token ids for 2 rows",
        ),
        ({"num_tokens": 2}, np.zeros((2, 1), np.uint8), {}, "weights of shape"),
        (
            {"num_tokens": 2},
            np.zeros((2, 1), np.uint8),
            {"weights_TS": np.zeros((2, 1))},
            r"router scalars of shape \(\), expected \(2, 3\)",
        ),
    ],
)
def test_rows_that_do_not_fit_are_refused(
    tmp_path: Path, facts: dict[str, Any], ids_TB: np.ndarray, more: Any, message: str
) -> None:
    layer = replace(LAYER, scalars=True)
    with TraceWriter(tmp_path / "t", layers=[layer], capture="weights") as writer:
        sequence = Sequence(sequence_id=writer.next_sequence_id(), **facts)
        with pytest.raises(ValueError, match=message):
            writer.write(sequence, ids_TB, **{"weights_TS": np.zeros((1, 1)), **more})
    assert open_trace(tmp_path / "t").sequences.num_rows == 0


@pytest.mark.parametrize(
    ("facts", "cached"),
    [
        ({"prefix_tokens": 2}, 2),
        ({"cached_tokens": 1}, 0),
        ({"prefix_id": 0, "prefix_tokens": 1, "cached_tokens": 1}, 0),
    ],
)
def test_leading_tokens_are_shared_or_cached(tmp_path: Path, facts: Any, cached: int) -> None:
    with TraceWriter(tmp_path / "t", layers=[LAYER]) as writer:
        sequence = Sequence(sequence_id=writer.next_sequence_id(), num_tokens=3, **facts)
        with pytest.raises(ValueError, match=f"cached_tokens must be {cached}"):
            writer.write(sequence)


def test_an_id_is_written_once(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "t", layers=[LAYER]) as writer:
        first, second = writer.next_sequence_id(), writer.next_sequence_id()
        for number in (second, first):
            writer.write(Sequence(sequence_id=number, num_tokens=0))
        for number in (first, second, 7):
            with pytest.raises(ValueError, match=f"sequence id {number} was written before or"):
                writer.write(Sequence(sequence_id=number, num_tokens=0))
    with pytest.raises(ValueError, match="closed"):
        writer.write(Sequence(sequence_id=2, num_tokens=0))


def test_a_slow_disk_stalls_the_model_and_drops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, flush = threading.Event(), parts.flush

    def slow_flush(*arguments: Any) -> None:
        gate.wait()
        flush(*arguments)

    monkeypatch.setattr(spool_module, "flush", slow_flush)
    accepted: list[int] = []
    with TraceWriter(tmp_path / "t", layers=[LAYER], segment_tokens=10) as writer:

        def write_all() -> None:
            for _ in range(8):
                accepted.append(add(writer, 10))

        model = threading.Thread(target=write_all)
        model.start()
        model.join(timeout=1)
        # Three segments are full, and that is all the memory there is.
        assert (model.is_alive(), accepted) == (True, [0, 1, 2])
        gate.set()
        model.join()
    assert writer.stats.stalls >= 1
    assert writer.stats.stalled_seconds > 0.5
    assert part_lengths(tmp_path / "t") == [10] * 8
    assert open_trace(tmp_path / "t").run["writer"]["stalls"] == writer.stats.stalls


def test_an_idle_part_is_written_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_module, "_PART_SECONDS", -1.0)
    with TraceWriter(tmp_path / "t", layers=[LAYER]) as writer:
        for _ in range(3):
            add(writer, 5)
    assert part_lengths(tmp_path / "t") == [5, 5, 5]


def test_answers_join_their_sequence_when_all_are_there(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "t", layers=[LAYER]) as writer:
        for choices in ([0, 1], [0], []):
            number = writer.next_sequence_id()
            writer.write(Sequence(sequence_id=number, num_tokens=0, choices=choices))
        writer.answer(0, 1, loglik=-2.0, is_greedy=False)
        writer.answer(1, 0, response="a lone surrogate: \ud800")
        writer.answer(2, 3, loglik=float("-inf"), is_greedy=np.bool_(True))  # type: ignore[arg-type]
        writer.close("interrupted")
    assert open_trace(tmp_path / "t").sequences["choice_logliks"][0].as_py() is None
    with TraceWriter(tmp_path / "t", layers=[LAYER], resume=True) as writer:
        writer.answer(0, 0, loglik=-1.0, is_greedy=True)
        writer.close(correct={("", -1): True})
    rows = open_trace(tmp_path / "t").sequences.to_pylist()
    assert [row["choice_logliks"] for row in rows] == [[-1.0, -2.0], None, [float("-inf")]]
    assert [row["response"] for row in rows] == [None, "a lone surrogate: ?", None]
    assert [row["correct"] for row in rows] == [True] * 3
    assert sorted(path.name for path in (tmp_path / "t").iterdir()) == [
        "counts",
        "routing",
        "run.json",
        "sequences",
    ]


def test_run_facts_cannot_hide_the_format(tmp_path: Path) -> None:
    run = {"moe_probe_trace": 9, "layers": [], "model": "m"}
    TraceWriter(tmp_path / "t", layers=[LAYER], run=run).close(facts={"completeness": {}})
    found = json.loads((tmp_path / "t" / "run.json").read_text())
    assert (found["moe_probe_trace"], len(found["layers"]), found["model"]) == (1, 1, "m")
    assert found["status"] == "complete"
    assert set(found) >= {"start", "end", "writer", "capture", "completeness"}


@pytest.mark.parametrize(
    ("error", "status"), [(KeyboardInterrupt, "interrupted"), (ValueError, "failed")]
)
def test_how_it_ended_is_recorded(tmp_path: Path, error: type[BaseException], status: str) -> None:
    writer = TraceWriter(tmp_path / "t", layers=[LAYER])
    add(writer, 3)
    with pytest.raises(error), writer:
        raise error
    assert open_trace(tmp_path / "t").run["status"] == status
    assert part_lengths(tmp_path / "t") == [3]
