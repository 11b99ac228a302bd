"""Engines of tests/vllm/engines.py with the probe in them, and what they recorded, row by row.

Shape suffixes: T tokens, K slots.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from moe_probe.hooks.vllm import register
from moe_probe.recording.tags import external_id
from moe_probe.trace import Capture, Trace, open_trace
from tests.vllm.engines import engine
from tests.vllm.reference import Reference, assert_same_routing


@contextmanager
def recorded_engine(
    folder: Path | str,
    trace: Path,
    *,
    capture: str = "weights",
    environment: Mapping[str, str] | None = None,
    **arguments: Any,
) -> Iterator[Any]:
    """Run an engine in this process that records live traffic, tokens included, into a trace."""
    variables = {
        "MOE_PROBE_TRACE": str(trace),
        "MOE_PROBE_CAPTURE": capture,
        "MOE_PROBE_TOKENS": "1",
        **(environment or {}),
    }
    with engine(folder, environment=variables, prepare=register, **arguments) as llm:
        yield llm


def call(llm: Any, command: str, payload: Any = None) -> dict[str, Any]:
    """Give the worker that records a command."""
    answers = llm.collective_rpc("moe_probe_call", args=(command, payload))
    (answer,) = [each for each in answers if each is not None]
    return dict(answer)


@contextmanager
def watched(llm: Any) -> Iterator[list[Any]]:
    """Collect what the scheduler of an engine in this process decides, step by step."""
    scheduler = llm.llm_engine.engine_core.engine_core.scheduler
    schedule, steps = scheduler.schedule, []

    def watched_schedule(*args: Any, **kwargs: Any) -> Any:
        steps.append(schedule(*args, **kwargs))
        return steps[-1]

    with mock.patch.object(scheduler, "schedule", watched_schedule):
        yield steps


def scheduled(steps: Sequence[Any]) -> list[list[list[int]]]:
    """What each of the scheduler's steps ran, if it ran any token: request, first position, tokens.

    Args:
        steps: Of `watched`.
    """
    ran = []
    for step in steps:
        known = step.scheduled_cached_reqs
        starts = dict(zip(known.req_ids, known.num_computed_tokens, strict=True))
        starts |= {new.req_id: new.num_computed_tokens for new in step.scheduled_new_reqs}
        tokens = step.num_scheduled_tokens.items()
        ran.append([[int(external_id(name)), int(starts[name]), int(n)] for name, n in tokens])
    return [step for step in ran if step]


def sequences_of(path: Path) -> list[dict[str, Any]]:
    """The sequences of a trace in the order they were recorded, each with its rows.

    `positions` are those that have rows in the trace, `token_ids`, `passes`, `ids` and `weights`
    (by layer) their rows; shared rows are taken from whoever stores them.
    """
    trace = open_trace(path)
    rows = _stored_rows(trace)
    found = {row["sequence_id"]: row for row in trace.sequences.to_pylist()}
    for row in found.values():
        positions, chosen = [], []
        stop, owner = row["num_tokens"], row["sequence_id"]
        while owner >= 0 and stop > 0:
            start = found[owner]["prefix_tokens"]
            for position in range(start, stop):
                positions.append(position)
                chosen.append(rows["index"][owner, position])
            owner, stop = found[owner]["prefix_id"], min(stop, start)
        order = np.argsort(positions)
        chosen_T = np.asarray(chosen, np.int64)[order]
        row["positions"] = np.asarray(positions, np.int64)[order]
        row["token_ids"] = rows["token_ids"][chosen_T]
        row["passes"] = rows["passes"][chosen_T]
        for kind in ("ids", "weights", "scalars"):
            row[kind] = {layer: values[chosen_T] for layer, values in rows[kind].items()}
    return list(found.values())


def _stored_rows(trace: Trace) -> dict[str, Any]:
    has_weights = trace.capture is Capture.WEIGHTS
    blocks = list(trace.scan(weights=has_weights))
    names = [
        key
        for block in blocks
        for key in zip(block.sequence_id_T.tolist(), block.position_T.tolist(), strict=True)
    ]
    assert len(set(names)) == len(names), "a position of a sequence is stored twice"
    rows: dict[str, Any] = {
        "index": {name: index for index, name in enumerate(names)},
        "token_ids": np.concatenate([block.token_id_T for block in blocks]),
        "passes": np.concatenate([block.forward_pass_T for block in blocks]),
        "ids": {},
        "weights": {},
        "scalars": {},
    }
    for layer, spec in trace.layers.items():
        rows["ids"][layer] = np.concatenate([block.topk_ids(layer) for block in blocks])
        if has_weights:
            weights = [block.topk_weights(layer) for block in blocks]
            rows["weights"][layer] = np.concatenate(weights)
            if spec.scalars:
                scalars = [block.router_scalars(layer) for block in blocks]
                rows["scalars"][layer] = np.concatenate(scalars)
    return rows


def assert_as_reference(
    row: Mapping[str, Any],
    tokens: list[int],
    reference: Reference,
    *,
    first: int = 0,
    atol: float = 1e-4,
) -> None:
    """Compare a recorded sequence with transformers on the tokens it was run with.

    Args:
        row: Of `sequences_of`, no position missing.
        tokens: The prompt and the generated tokens that were fed back.
        reference: The same checkpoint.
        first: The first position that was run; those before were in the engine's cache.
        atol: As in `assert_same_routing`, beside what float16 rounds off.
    """
    assert row["num_tokens"] == len(tokens)
    assert row["cached_tokens"] == first
    assert row["token_ids"].tolist() == tokens[first:]
    (expected,) = reference.routing([tokens])
    expected = expected.after(first)
    largest = max(float(weights.max()) for weights in expected.weights.values())
    assert_same_routing(
        expected,
        row["positions"] - first,
        row["ids"],
        row["weights"] or None,
        atol=atol + largest * 2.0**-11,
    )


def assert_complete(
    trace: Path,
    prompts: Sequence[list[int]],
    answers: Sequence[dict[str, Any]],
    reference: Reference,
    *,
    steps: Sequence[Sequence[Sequence[int]]] | None = None,
) -> dict[str, Any]:
    """Check that a trace has each request of an engine once, as transformers decides it.

    Args:
        trace: Of an engine that has ended.
        prompts: In the order they were asked.
        answers: Of `generate`.
        reference: The same checkpoint.
        steps: What the engine ran, by its scheduler (`scheduled`); without it, every token once.

    Returns:
        The books of completeness, which were checked too.
    """
    run = open_trace(trace).run
    assert run["status"] == "complete", run
    rows = sorted(sequences_of(trace), key=lambda row: int(row["request_id"]))
    num_recorded = 0
    for row, prompt, answer in zip(rows, prompts, answers, strict=True):
        tokens, first = [*prompt, *answer["tokens"][:-1]], answer["cached"]
        assert_as_reference(row, tokens, reference, first=first)
        assert row["choice_end"] == len(prompt)
        if steps is not None:
            last = _last_steps(steps, int(row["request_id"]))
            assert row["passes"].tolist() == [last[n] for n in range(first, len(tokens))]
        num_recorded += len(tokens) - first
    books: dict[str, Any] = run["completeness"]
    num_run = num_recorded
    if steps is not None:
        num_run = sum(tokens for step in steps for _, _, tokens in step)
    assert (books["shortfall"], books["lost_tokens"], books["dropped_tokens"]) == (0, 0, 0)
    assert books["recorded_tokens"] == books["expected_tokens"] == num_recorded
    assert books["computed_tokens"] == num_run
    assert books["superseded_tokens"] == num_run - num_recorded
    assert set(books["layers"].values()) == {num_run}
    return books


def _last_steps(steps: Sequence[Sequence[Sequence[int]]], request: int) -> dict[int, int]:
    """By position, the last step that ran it for a request."""
    return {
        position: number
        for number, step in enumerate(steps)
        for name, start, tokens in step
        for position in range(start, start + tokens)
        if name == request
    }
