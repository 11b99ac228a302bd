"""Run the product the way its command does, and stock lm-eval beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM

from moe_probe.evaluation.plan import RecordOptions, make_plan
from moe_probe.evaluation.run import RunResult, run_recording
from moe_probe.models import resolve_model
from moe_probe.trace import Capture, Trace


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
