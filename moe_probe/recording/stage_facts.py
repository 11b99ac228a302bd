"""What run.json says of a trace that was joined from pipeline stages: facts, books, status."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from moe_probe.errors import TraceError
from moe_probe.recording.completeness import Completeness
from moe_probe.recording.stage_rows import Lost
from moe_probe.trace import Capture, LayerSpec, RowLayout, Trace
from moe_probe.trace.ranks import STATUSES

Facts = dict[str, Any]

# What a run.json says of its own trace; the joined one has its own.
_OF_A_TRACE = {
    *("moe_probe_trace", "capture", "layers", "status", "start", "end", "group", "ranks"),
    *("writer", "rows_not_kept", "recovered_tokens", "completeness", "prefix_check"),
    *("stage", "resumed", "reason"),
}
_DROPPED = ("dropped_tokens", "dropped_steps")


def raw_capture(capture: Capture) -> Capture:
    """What a stage keeps, so that the joined trace can keep `capture`: ids at least."""
    return Capture.IDS if capture is Capture.COUNTS else capture


def stage_facts(
    capture: Capture, *, sample_every: int, is_evaluation: bool, replaces: bool
) -> Facts:
    """What the run.json of a stage says, under `stage`, to whoever joins it: new for each session.

    Args:
        capture: What the joined trace is to keep; the stages keep ids at least.
        sample_every: One document in this many is recorded.
        is_evaluation: Whether requests that the trace has already are not recorded again.
        replaces: Whether the joined trace takes the place of the one that is there.
    """
    return {
        # Times of day would not tell two recordings of one second apart.
        "id": uuid.uuid4().hex,
        "capture": str(capture),
        "sample_every": sample_every,
        "is_evaluation": is_evaluation,
        "replaces": replaces,
    }


def identity_of(runs: Mapping[int, Facts]) -> Facts:
    """What tells the recordings of stages from later ones in the same place, by stage."""
    return {str(n): (run.get("stage") or {}).get("id") for n, run in runs.items()}


def is_joined(root_run: Facts, runs: Mapping[int, Facts]) -> bool:
    """Whether the trace with run.json `root_run` has all of these stages' recordings."""
    join = join_of(root_run)
    return bool(join.get("is_done")) and identity_of(runs).items() <= join["of"].items()


def join_of(root_run: Facts) -> Facts:
    """What run.json says of the join that is, or was last, made; nothing where it says nonsense."""
    join = root_run.get("join")
    if not isinstance(join, dict) or not isinstance(join.get("of"), dict):
        return {}
    # A join that an earlier moe-probe began gave no forward passes.
    join = {"first_pass": 0, **join}
    return join if all(type(join.get(name)) is int for name in ("first", "first_pass")) else {}


def joined_layout(stages: Mapping[int, Trace]) -> RowLayout:
    """All layers in model order; raises TraceError for stages that do not fit together."""
    root = next(iter(stages.values())).path.parent
    levels = sorted({_level(trace) for trace in stages.values()})
    if len(levels) > 1:
        raise TraceError(
            f"The pipeline stages in {root} have different capture levels, {', '.join(levels)}, so "
            "they cannot be joined. Record again, with one level for all."
        )
    owners: dict[int, int] = {}
    for number, trace in stages.items():
        for layer in trace.layers:
            if owners.setdefault(layer, number) != number:
                raise TraceError(
                    f"Pipeline stages {owners[layer]} and {number} in {root} both have layer "
                    f"{layer}, so they are not of one recording. Record again."
                )
    facts = next(iter(stages.values())).run.get("model_facts") or {}
    expected = facts.get("num_moe_layers")
    if isinstance(expected, int) and expected != len(owners):
        raise TraceError(
            f"The pipeline stages in {root} have {len(owners)} of the model's {expected} MoE "
            f"layers: {sorted(owners)}. Copy what other machines recorded there too, then open it."
        )
    specs: list[LayerSpec] = [spec for trace in stages.values() for spec in trace.layers.values()]
    return RowLayout(tuple(sorted(specs, key=lambda spec: spec.layer)))


def _level(trace: Trace) -> str:
    """What the joined trace is to keep."""
    facts: Any = trace.run.get("stage")
    try:
        if raw_capture(Capture(facts["capture"])) is trace.capture and facts["sample_every"] > 0:
            return str(facts["capture"])
    except (KeyError, TypeError, ValueError):
        pass
    raise TraceError(f"{trace.path} is no pipeline stage's trace. Open it by itself.")


def run_facts(stages: Mapping[int, Trace]) -> Facts:
    """What the joined trace's run.json has from its stages: all of the first, and what differs."""
    first = next(iter(stages.values())).run
    same = {name: value for name, value in first.items() if name not in _OF_A_TRACE}
    table: Facts = {}
    for number, trace in stages.items():
        run = trace.run
        differs = {
            name: value
            for name, value in run.items()
            if name not in _OF_A_TRACE and value != same.get(name)
        }
        ended = {name: run.get(name) for name in ("status", "start", "end")}
        table[str(number)] = {"layers": list(trace.layers), **ended, **differs}
    return {**same, "stages": table}


def outcome(runs: Mapping[int, Facts], totals: Completeness, lost: Lost) -> tuple[str, Facts]:
    """How the joined recording ended: its status, and the facts of that, books among them.

    Args:
        runs: run.json of each stage.
        totals: What was joined, stored and shared.
        lost: What could not be.
    """
    tables = {n: run["completeness"] for n, run in runs.items() if run.get("completeness")}
    books = _books({n: Completeness.from_json(t) for n, t in tables.items()}, totals, lost)
    facts: Facts = {}
    if len(tables) == len(runs):
        dropped = {name: max(t.get(name, 0) for t in tables.values()) for name in _DROPPED}
        facts["completeness"] = {**books.to_json(), **dropped}
    reasons = dict.fromkeys(str(run["reason"]) for run in runs.values() if run.get("reason"))
    if reasons:
        facts["reason"] = "; ".join(reasons)
    statuses = [run.get("status") for run in runs.values()]
    worst = max(STATUSES.index(s) if s in STATUSES else len(STATUSES) - 1 for s in statuses)
    status = STATUSES[worst]
    if status in ("complete", "incomplete"):
        # A stage may lack what the trace had before; only the whole can tell.
        status = "complete" if books.shortfall == 0 else "incomplete"
    return status, facts


def _books(stages: Mapping[int, Completeness], totals: Completeness, lost: Lost) -> Completeness:
    """The books of the joined trace.

    Every stage ran the same tokens, each through its own layers, so of two numbers the larger one
    is that of the stage which saw more.
    """
    names = [field.name for field in fields(Completeness) if field.name != "layers"]
    most = {n: max((getattr(each, n) for each in stages.values()), default=0) for n in names}
    # What a stage lost and another one has is lost by the join; the rest no stage has.
    nowhere = [books.lost_tokens - lost.by_stage[number] for number, books in stages.items()]
    most["lost_tokens"] = lost.tokens + max([0, *nowhere])
    most["expected_tokens"] -= lost.cut
    most["superseded_tokens"] += lost.cut
    stored = ("stored_tokens", "shared_tokens", "unsampled_tokens")
    most |= {name: getattr(totals, name) for name in stored}
    layers = {layer: n for books in stages.values() for layer, n in books.layers.items()}
    return Completeness(**most, layers=layers)
