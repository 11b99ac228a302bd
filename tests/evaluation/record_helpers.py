"""Run the product the way its command does, and stock lm-eval beside it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from torch.nn.modules.module import register_module_forward_hook

from moe_probe.evaluation.plan import RecordOptions, make_plan
from moe_probe.evaluation.run import RunResult, run_recording
from moe_probe.models import resolve_model
from moe_probe.trace import Capture, Trace
from tests.trace.recordings import stored_passes


def record(model: Path | str, tasks: list[str], output: Path, **changes: Any) -> RunResult:
    """Record with the options of `moe-probe record`, fp32 on the CPU."""
    changes.setdefault("batch_size", "4")
    options = RecordOptions(
        model=resolve_model(str(model)),
        tasks=tasks,
        output=output,
        dtype="float32",
        quiet=True,
        **{**changes, "capture": Capture(changes.get("capture", "ids"))},
    )
    return run_recording(make_plan(options))


@contextmanager
def watched_forwards() -> Iterator[list[np.ndarray]]:
    """Collect the token ids [B, T] that causal models are fed, pass by pass, but for the probe's.

    The probe feeds two tokens, and no prompt of these tests is as short.
    """
    fed: list[np.ndarray] = []

    def note(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        if type(module).__name__.endswith("ForCausalLM"):
            tokens_BT = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
            if tokens_BT.shape != (1, 2):
                fed.append(tokens_BT.numpy().copy())

    handle = register_module_forward_hook(note, with_kwargs=True)
    try:
        yield fed
    finally:
        handle.remove()


def tokens_of(trace: Trace) -> dict[int, list[int]]:
    """The token ids that were run for each sequence, those it shares included."""
    own: dict[int, list[int]] = defaultdict(list)
    for block in trace.scan(layers=[]):
        for sequence, token in zip(block.sequence_id_T, block.token_id_T, strict=True):
            own[int(sequence)].append(int(token))
    found: dict[int, list[int]] = {-1: []}
    for row in trace.sequences.to_pylist():
        sequence = row["sequence_id"]
        found[sequence] = found[row["prefix_id"]][: row["prefix_tokens"]] + own[sequence]
    return found


def passes_of(trace: Trace) -> dict[int, list[int]]:
    """The forward passes of each sequence's own rows, by position."""
    found: dict[int, list[int]] = defaultdict(list)
    for (sequence, _), number in stored_passes(trace).items():
        found[sequence].append(number)
    return found


def assert_passes_ran(trace: Trace, fed: list[np.ndarray], *tasks: str) -> set[int]:
    """Check that every prompt of some tasks is in one pass, which was fed it; return the passes."""
    tokens, passes = tokens_of(trace), passes_of(trace)
    wanted = [row["sequence_id"] for row in trace.sequences.to_pylist() if row["task"] in tasks]
    for sequence in wanted:
        if sequence in passes:
            (number,) = set(passes[sequence])
            ran_T = tokens[sequence]
            assert (fed[number][:, : len(ran_T)] == ran_T).all(axis=1).any()
    return {number for sequence in wanted for number in passes.get(sequence, [])}


def stock_samples(model: Path | str, items: list[Any], **arguments: Any) -> dict[str, Any]:
    """What lm-eval itself gives for the same tasks, without anything of ours."""
    lm = HFLM(
        pretrained=resolve_model(str(model)).identifier,
        dtype="float32",
        device="cpu",
        batch_size=arguments.pop("batch_size", 4),
        **arguments.pop("model_args", {}),
    )
    results = simple_evaluate(model=lm, tasks=items, bootstrap_iters=0, **arguments)
    assert results is not None
    return {"lm": lm, **results}


def rows_of(trace: Trace, sequence_id: int) -> np.ndarray:
    """Ids [tokens, layers * slots] of one sequence, shared tokens taken from their owner."""
    facts = {row["sequence_id"]: row for row in trace.sequences.to_pylist()}
    stored = {
        layer: np.concatenate([block.topk_ids(layer) for block in trace.scan()])
        for layer in trace.layers
    }
    sequence_ids = np.concatenate([block.sequence_id_T for block in trace.scan()])
    positions = np.concatenate([block.position_T for block in trace.scan()])
    row = facts[sequence_id]
    parts: list[np.ndarray] = []
    stop, owner = row["num_tokens"], sequence_id
    while stop > 0:
        start = facts[owner]["prefix_tokens"]
        mine = np.flatnonzero((sequence_ids == owner) & (positions < stop))
        mine = mine[np.argsort(positions[mine])]
        assert positions[mine].tolist() == list(range(start, stop)) or start >= stop
        parts.insert(0, np.concatenate([ids[mine] for ids in stored.values()], axis=1))
        owner, stop = facts[owner]["prefix_id"], min(stop, start)
    return np.concatenate(parts)
