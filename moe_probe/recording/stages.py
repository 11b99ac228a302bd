"""Pipeline stages: each records its own layers, and their traces become one.

    TRACE/stages/0, 1, ...    what each stage recorded, or is recording
    TRACE                     the joined trace; `join` in its run.json says from which sequence on
                              and of which recordings it was made, and whether it is done

A join that was killed goes on where it stopped. The stages' traces go when it is complete on disk.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from moe_probe.errors import TraceError
from moe_probe.recording.joined_run import KnownRun, record_joined
from moe_probe.recording.recorder import Recorder
from moe_probe.recording.stage_facts import (
    identity_of,
    is_joined,
    join_of,
    joined_layout,
    outcome,
    run_facts,
)
from moe_probe.recording.stage_rows import JoinedRows
from moe_probe.trace import RowLayout, Trace, TraceWriter
from moe_probe.trace import open_trace as open_joined
from moe_probe.trace.files import TraceFiles, read_run, write_run
from moe_probe.trace.locks import writer_lock
from moe_probe.trace.output import last_forward_pass, last_sequence
from moe_probe.trace.recovery import recover
from moe_probe.trace.schema import FORMAT_VERSION, SEGMENT_TOKENS

Correct = Mapping[tuple[str, int], bool]


def open_trace(path: str | Path) -> Trace:
    """Open a trace as `moe_probe.trace.open_trace` does, after joining its pipeline stages.

    Raises:
        TraceError: as that, or the stages are still being recorded or cannot be joined.
    """
    files = TraceFiles(Path(path))
    if stages_of(files) and _root_run(files).get("status") != "refused":
        join_stages(files.root)
    return open_joined(files.root)


def stages_of(files: TraceFiles) -> dict[int, TraceFiles]:
    """Traces of pipeline stages that are not joined yet, by number."""
    stages = files.pipeline_stages().items()
    return {number: stage for number, stage in stages if stage.run.is_file()}


def join_stages(root: str | Path, *, correct: Correct | None = None) -> dict[str, Any] | None:
    """Make one trace of what pipeline stages recorded into it, and delete their own.

    Requests are recorded in the order of the first stage that has layers, as one process that saw
    all layers would have. One that some stage lacks is lost, and counted as that.

    Args:
        root: The trace.
        correct: Whether the model was right, by (task, doc_id), beside what the stages know.

    Returns:
        The content of run.json; None where there are no stages.

    Raises:
        TraceError: a stage is still being recorded, the stages do not fit together, one is
            damaged, or the trace cannot be written.
    """
    files = TraceFiles(Path(root))
    with ExitStack() as stack:
        stages = _held_stages(files, stack)
        if not stages:
            return None
        if not is_joined(_root_run(files), _runs(stages)):
            _join(files, stages, dict(correct or {}))
        for trace in stages.values():
            trace.files.clear()
    for number in stages:
        files.drop_pipeline_stage(number)
    return read_run(files)


def _held_stages(files: TraceFiles, stack: ExitStack) -> dict[int, Trace]:
    """Recover all stages and keep others from changing them until `stack` ends."""
    stages = {}
    for number, stage in stages_of(files).items():
        try:
            is_ours = stack.enter_context(writer_lock(stage))
        except OSError as error:
            raise TraceError(
                f"{files.root} was recorded by pipeline stages, and they cannot be joined where "
                f"they lie ({error.strerror}). Copy it to a place that can be written."
            ) from error
        if not is_ours:
            raise TraceError(
                f"{files.root} is being recorded by pipeline stages, or joined from them. It can "
                "be opened when that has ended."
            )
        run = read_run(stage)
        if run.get("status") == "running" or stage.stage.is_dir():
            recover(stage, run)
        stages[number] = Trace(stage, run, is_recording=False)
    return stages


def _join(
    files: TraceFiles, stages: dict[int, Trace], correct: dict[tuple[str, int], bool]
) -> None:
    layout = joined_layout(stages)
    rows = JoinedRows(stages, layout)
    of_stages = next(iter(stages.values())).run["stage"]
    join = _begin(files, stages, layout)
    known = KnownRun(
        open_joined(files.root), join["first"], is_evaluation=bool(of_stages.get("is_evaluation"))
    )
    with TraceWriter(
        files.root,
        layers=list(layout.layers),
        capture=of_stages["capture"],
        run=run_facts(stages),
        resume=True,
        segment_tokens=max(SEGMENT_TOKENS, rows.longest),
    ) as writer:
        recorder = Recorder(writer, sample_every=of_stages["sample_every"], prior=known)
        for request, tokens_T in known.prompts:
            recorder.note_known(request, tokens_T, 0)
        for joined in rows.join(join["first_pass"]):
            record_joined(recorder, joined)
            if joined.facts["correct"] is not None:
                document = joined.facts["task"], joined.facts["doc_id"]
                correct.setdefault(document, joined.facts["correct"])
        status, facts = outcome(_runs(stages), recorder.totals, rows.lost)
        facts |= {
            "prefix_check": asdict(recorder.prefixes.check),
            "join": {**join, "is_done": True, "lost_tokens": rows.lost.tokens},
            "resumed": join["resumed"],
        }
        writer.close(status, facts=facts, correct=correct)


def _begin(files: TraceFiles, stages: dict[int, Trace], layout: RowLayout) -> dict[str, Any]:
    """Note what is about to be joined, unless that was noted before.

    Returns `join` of run.json: of which recordings, from which sequence and forward pass on, when
    the recording was resumed.
    """
    run = _root_run(files)
    join = join_of(run)
    own = next(iter(stages.values())).run
    is_begun = bool(join) and not join.get("is_done")
    of = identity_of(_runs(stages))
    if is_begun and join["of"] == of:
        return {**join, "resumed": list(join.get("resumed") or [])}
    if is_begun and not own["stage"].get("replaces"):
        raise TraceError(
            f"{files.root} was being joined from other pipeline stages than those it has now, so "
            "tokens may be missing or there twice. Record into a new place."
        )
    same = {
        "moe_probe_trace": FORMAT_VERSION,
        "capture": own["stage"]["capture"],
        "layers": [spec.to_json() for spec in layout.layers],
    }
    if not run or own["stage"].get("replaces"):
        files.clear()
        first = first_pass = 0
        resumed = list(own.get("resumed") or [])
        run = {**same, "start": own.get("start"), "status": "killed"}
    else:
        run = _rested(files, same)
        first = last_sequence(files, rank=0) + 1
        first_pass = last_forward_pass(files, rank=0) + 1
        resumed = [*(run.get("resumed") or []), own.get("start")]
    begun = {"of": of, "first": first, "first_pass": first_pass, "resumed": resumed}
    write_run(files, {**run, "join": {**begun, "is_done": False}})
    return begun


def _rested(files: TraceFiles, same: dict[str, Any]) -> dict[str, Any]:
    """Bring the trace that is there to rest; raises TraceError if the stages do not belong to it.

    Returns its run.json.
    """
    trace = open_joined(files.root)
    if trace.is_recording:
        raise TraceError(f"Another process is recording into {files.root}. Wait for it to end.")
    for name, value in same.items():
        if trace.run.get(name) != value:
            raise TraceError(
                f"{files.root} has pipeline stages of another recording: their {name} is "
                f"{value!s:.80}, not {trace.run.get(name)!s:.80}. Move its folder stages to an "
                "empty directory and open that."
            )
    return trace.run


def _runs(stages: dict[int, Trace]) -> dict[int, dict[str, Any]]:
    return {number: trace.run for number, trace in stages.items()}


def _root_run(files: TraceFiles) -> dict[str, Any]:
    return read_run(files) if files.run.is_file() else {}
