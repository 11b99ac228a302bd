"""A session over a real trace, fed by hand: what is kept, what is lost, and what is said of it."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from moe_probe.hooks.vllm import session as session_module
from moe_probe.recording.tags import TAG
from moe_probe.trace import open_trace
from tests.hooks.vllm.fed import Engine, ids_of, num_counted, rows_of


def tagged(choice: int, bounds: list[int], doc: int = 5) -> dict[str, Any]:
    return {
        TAG: {
            "task": "mmlu_law",
            "subject": "law",
            "doc": doc,
            "kind": "loglikelihood",
            "choice": choice,
            "bounds": bounds,
        }
    }


@pytest.mark.parametrize("keeps_tokens", [False, True])
def test_text_of_live_traffic_is_kept_only_if_asked_for(tmp_path: Path, keeps_tokens: bool) -> None:
    engine = Engine(tmp_path / "t", keeps_tokens=keeps_tokens)
    prompt = [11, 12, 13, 14]
    engine.serve("a", prompt, 2)
    engine.serve("b", prompt, 2)
    assert engine.close()["status"] == "complete"
    first, second = open_trace(tmp_path / "t").sequences.to_pylist()
    assert (first["request_id"], first["kind"], first["num_tokens"]) == ("a", "served", 6)
    assert bool(first["prompt_hash"]) == keeps_tokens
    # An index of all texts that a server ever sees would grow without end; and shared rows would
    # say that two users sent the same text.
    assert first["new_from"] == -1
    assert second["prefix_tokens"] == 0
    rows = rows_of(tmp_path / "t")
    tokens = [token for (sequence, _), (token, _) in sorted(rows.items()) if sequence == 0]
    assert tokens == ([*prompt, 104, 105] if keeps_tokens else [-1] * 6)
    expected = ids_of(engine.texts["a-0123abcd"]).tolist()
    assert [ids for (sequence, _), (_, ids) in sorted(rows.items()) if sequence == 0] == expected
    if not keeps_tokens:
        text = b"".join(path.read_bytes() for path in (tmp_path / "t").rglob("*.json"))
        assert b"0123abcd" not in text
    assert num_counted(tmp_path / "t") == 12


def test_choices_of_a_question_share_its_rows_and_get_their_answers(tmp_path: Path) -> None:
    engine, context = Engine(tmp_path / "t"), [1, 2, 3, 4, 5, 6, 7]
    for choice in range(4):
        tags = tagged(choice, [3, 6, 7, 8])
        engine.serve(f"r{choice}", [*context, 50 + choice], tags=tags)
    engine.session.answer([(f"r{n}", {"loglik": -1.0 - n, "is_greedy": n == 2}) for n in range(4)])
    run = engine.close(prompt_tokens=32)
    assert (run["status"], run["completeness"]["shortfall"]) == ("complete", 0)
    sequences = open_trace(tmp_path / "t").sequences.to_pylist()
    assert [row["prefix_tokens"] for row in sequences] == [0, 7, 7, 7]
    assert [row["prefix_id"] for row in sequences] == [-1, 0, 0, 0]
    assert [row["multiplicity"] for row in sequences] == [1, 1, 1, 1]
    assert [row["new_from"] for row in sequences] == [0, 7, 7, 7]
    assert [row["choice_logliks"] for row in sequences] == [[-1.0], [-2.0], [-3.0], [-4.0]]
    assert [row["choice_is_greedy"] for row in sequences] == [[False], [False], [True], [False]]
    rows = rows_of(tmp_path / "t")
    assert len(rows) == 8 + 3
    for choice in range(4):
        expected = ids_of([*context, 50 + choice])[7].tolist()
        assert rows[choice, 7] == (50 + choice, expected)
    books = run["completeness"]
    assert (books["stored_tokens"], books["shared_tokens"]) == (11, 21)
    assert books["computed_tokens"] == books["recorded_tokens"] == books["expected_tokens"] == 32
    assert num_counted(tmp_path / "t") == 32


def test_answers_may_come_before_a_request_is_recorded(tmp_path: Path) -> None:
    engine = Engine(tmp_path / "t")
    engine.session.answer([("r1", {"loglik": -2.0, "is_greedy": False})])
    engine.serve("r0", [1, 2, 3], tags=tagged(0, [0, 1, 2, 3]))
    engine.serve("r1", [1, 2, 4], tags=tagged(1, [0, 1, 2, 3]))
    engine.session.answer([("r0", {"loglik": -1.0, "is_greedy": True})])
    engine.close()
    sequences = open_trace(tmp_path / "t").sequences.to_pylist()
    assert [row["choice_logliks"] for row in sequences] == [[-1.0], [-2.0]]


@pytest.mark.parametrize("length", [None, 6])
@pytest.mark.parametrize("dropped", [0, 1, 2])
def test_a_request_with_a_dropped_step_is_lost_and_no_other(
    tmp_path: Path, dropped: int, length: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(tmp_path / "t", waits=False)
    engine.serve("before", [1, 2, 3])
    name = engine.admit("dropped", [1, 2, 3, 4, 5, 6])
    for index in range(3):
        # The recording thread is behind, and what waits fills all there is.
        is_over = threading.Event()
        if index == dropped:
            monkeypatch.setattr(engine.session._channel, "_max_bytes", 0)
            engine.session._channel.put(is_over.wait, 1)
        engine.run(name, 2 * index, 2 * index + 2)
        is_over.set()
        monkeypatch.undo()
    engine.end(name, length)
    engine.serve("after", [4, 5, 6])
    run = engine.close()
    books = run["completeness"]
    assert run["status"] == "incomplete"
    assert (books["dropped_steps"], books["dropped_tokens"]) == (1, 2)
    assert (books["lost_tokens"], books["missing_tokens"], books["shortfall"]) == (6, 2, 6)
    assert books["computed_tokens"] == 3 + 4 + 3
    sequences = open_trace(tmp_path / "t").sequences.to_pylist()
    assert [row["request_id"] for row in sequences] == ["before", "after"]
    assert num_counted(tmp_path / "t") == len(rows_of(tmp_path / "t")) == 6


def test_prompts_that_never_came_are_a_shortfall(tmp_path: Path) -> None:
    engine = Engine(tmp_path / "t")
    engine.serve("a", [1, 2, 3, 4], tags=tagged(0, [0, 2, 3, 4]))
    run = engine.close(prompt_tokens=10)
    assert (run["status"], run["completeness"]["shortfall"]) == ("incomplete", 6)


def test_what_ran_of_an_aborted_prompt_is_recorded_as_such(tmp_path: Path) -> None:
    engine = Engine(tmp_path / "t", keeps_tokens=True)
    name = engine.admit("a", list(range(1, 11)), tags={"bounds": [2, 4, 8, 10]})
    engine.run(name, 0, 6)
    engine.end(name, 6)
    never_run = engine.admit("b", [1, 2, 3])
    engine.end(never_run, 0)
    assert engine.close()["status"] == "complete"
    (sequence,) = open_trace(tmp_path / "t").sequences.to_pylist()
    bounds = [sequence[f"{name}_end"] for name in ("prefix", "question", "cue", "choice")]
    assert (sequence["num_tokens"], bounds) == (6, [2, 4, 6, 6])
    assert [token for token, _ in rows_of(tmp_path / "t").values()] == [1, 2, 3, 4, 5, 6]


def test_cached_tokens_are_nobodys_rows(tmp_path: Path) -> None:
    engine = Engine(tmp_path / "t", keeps_tokens=True)
    engine.serve("a", [1, 2, 3, 4, 5], 1, cached=3)
    assert engine.close()["status"] == "complete"
    (sequence,) = open_trace(tmp_path / "t").sequences.to_pylist()
    assert (sequence["cached_tokens"], sequence["num_tokens"]) == (3, 6)
    assert sorted(position for _, position in rows_of(tmp_path / "t")) == [3, 4, 5]
    assert num_counted(tmp_path / "t") == 3


@pytest.mark.parametrize(("prompt", "generated"), [(60, 0), (30, 30), (10, 50)])
def test_a_request_longer_than_a_segment_is_lost_and_ends_nothing(
    tmp_path: Path, prompt: int, generated: int
) -> None:
    engine = Engine(tmp_path / "t", segment_tokens=50)
    engine.serve("long", list(range(prompt)), generated)
    engine.serve("fits", list(range(20)), 30)
    run = engine.close()
    assert (run["status"], run["completeness"]["lost_tokens"]) == ("incomplete", 60)
    assert len(rows_of(tmp_path / "t")) == 50


def test_a_silent_layer_is_named(tmp_path: Path) -> None:
    engine = Engine(tmp_path / "t")
    name = engine.admit("a", [1, 2, 3])
    engine.run(name, 0, 3, silent=(False, True))
    engine.end(name, 3)
    run = engine.close()
    assert run["status"] == "incomplete"
    assert run["reason"].endswith("(layer: tokens): {2: 3}")
    assert run["completeness"]["layers"] == {"1": 3, "2": 0}


def test_an_exception_ends_the_recording_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(tmp_path / "t")
    engine.serve("a", [1, 2, 3])
    engine.serve("b", [4, 5, 6])
    engine.session.flush()

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("not as expected")

    with monkeypatch.context() as patch:
        patch.setattr(session_module, "read_row", fail)
        engine.serve("c", [7, 8, 9])
        engine.session.flush()
        # Whoever hands over steps is told once there is no use in it any more.
        with pytest.raises(RuntimeError, match="not as expected"):
            engine.serve("d", [7, 8, 9])
        engine.session.close(None, {})
    run = json.loads((tmp_path / "t" / "run.json").read_text())
    assert (run["status"], run["reason"]) == ("failed", "RuntimeError: not as expected")
    # "b" ended with the step that failed, after "a" was on disk.
    assert [row["request_id"] for row in open_trace(tmp_path / "t").sequences.to_pylist()] == ["a"]
    assert len(rows_of(tmp_path / "t")) == 3


def test_flush_makes_what_ended_readable(tmp_path: Path) -> None:
    engine = Engine(tmp_path / "t")
    engine.serve("a", [1, 2, 3])
    engine.serve("b", [4, 5, 6])
    engine.session.flush()
    assert engine.session.status()["open_requests"] == 1
    assert sorted(rows_of(tmp_path / "t")) == [(0, 0), (0, 1), (0, 2)]
    status = engine.session.status()
    assert (status["recorded_tokens"], status["lost_tokens"], status["error"]) == (3, 0, None)
    engine.close()
    assert len(rows_of(tmp_path / "t")) == 6
