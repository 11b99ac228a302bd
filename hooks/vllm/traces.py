"""Opening the trace that a worker writes, and closing it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from moe_probe.errors import MoeProbeError, UsageError
from moe_probe.hooks.vllm.parallel import Place
from moe_probe.hooks.vllm.session import Session
from moe_probe.hooks.vllm.settings import Settings
from moe_probe.recording.prior import PriorRun
from moe_probe.recording.stage_facts import is_joined, join_of, raw_capture, stage_facts
from moe_probe.trace import Capture, LayerSpec, TraceWriter, check_output, open_trace
from moe_probe.trace.files import TraceFiles, read_run, write_run
from moe_probe.trace.locks import writer_lock
from moe_probe.trace.schema import FORMAT_VERSION, segment_tokens

_REFUSED = {
    "moe_probe_trace": FORMAT_VERSION,
    "capture": str(Capture.IDS),
    "layers": [],
    "status": "refused",
}


def open_session(
    settings: Settings,
    place: Place,
    layers: list[LayerSpec],
    facts: dict[str, Any],
    *,
    resume: bool = False,
    force: bool = False,
    sample_every: int = 1,
) -> Session:
    """Open the trace of an evaluation or of a server, which continues the one it finds.

    A pipeline stage opens one of its own, which is joined with the others when all have ended.

    Raises UsageError or TraceError where it cannot be written there.
    """
    mode = {"resume": resume, "force": force}
    files, capture, prior = TraceFiles(settings.path), settings.capture, None
    if place.is_stage:
        facts = {
            **facts,
            "stage": stage_facts(
                capture,
                sample_every=sample_every,
                is_evaluation=settings.is_evaluation,
                replaces=force,
            ),
        }
        mode = _stage_mode(settings, files, place.stage, layers, **mode)
        files, capture = files.pipeline_stage(place.stage), raw_capture(capture)
    elif not settings.is_evaluation:
        mode["resume"] = files.run.exists()
    elif resume:
        trace = open_trace(files.root)
        prior = PriorRun(trace.sequences, trace.run)
    writer = TraceWriter(
        files.root,
        layers=layers,
        capture=capture,
        run=facts,
        rank=place.data_rank,
        group=facts["engine"]["instance"] if place.num_data_ranks > 1 else "",
        segment_tokens=segment_tokens(facts["max_length"]),
        max_bytes=settings.max_bytes,
        **mode,
    )
    return Session(
        writer,
        keeps_tokens=settings.keeps_tokens,
        waits=settings.is_evaluation,
        prior=prior,
        sample_every=sample_every,
        is_stage=place.is_stage,
    )


def _stage_mode(
    settings: Settings,
    files: TraceFiles,
    stage: int,
    layers: list[LayerSpec],
    *,
    resume: bool,
    force: bool,
) -> dict[str, bool]:
    """How a pipeline stage opens its trace; raises UsageError where no joined one can be made."""
    if settings.max_bytes is not None:
        raise UsageError(
            "MOE_PROBE_MAX_GB cannot be kept with pipeline stages, whose rows are needed until "
            "they are joined. Leave it out, or use tensor parallelism only."
        )
    if resume and settings.capture is Capture.COUNTS:
        raise UsageError(
            "A recording of counts by pipeline stages cannot be resumed, since what it has seen "
            "is not known any more. Use --force, or --capture ids."
        )
    run = read_run(files) if files.run.is_file() else {}
    if settings.is_evaluation:
        # The folder of stages is theirs, and another one may have been quicker.
        if run or _others(files):
            check_output(files.root, resume=resume, force=force)
        elif resume:
            raise UsageError(f"Nothing to resume: {files.root} holds no trace. Leave --resume out.")
        return {"resume": False, "force": force}
    _check_belongs(files, run, settings.capture, layers)
    if join_of(run) and not join_of(run).get("is_done"):
        raise UsageError(
            f"{files.root} was being joined from its pipeline stages when that was ended. Run "
            f"`moe-probe check {files.root}` once, which completes it, then start again."
        )
    own = files.pipeline_stage(stage)
    if not own.run.is_file():
        return {"resume": False, "force": False}
    # What was joined and not deleted any more must not be joined twice.
    is_old = is_joined(run, {stage: read_run(own)})
    return {"resume": not is_old, "force": is_old}


def _others(files: TraceFiles) -> set[str]:
    """What lies where the trace is to be, beside the folder of pipeline stages."""
    root = files.root
    return {path.name for path in root.iterdir()} - {"stages"} if root.is_dir() else set()


def _check_belongs(
    files: TraceFiles, run: dict[str, Any], capture: Capture, layers: list[LayerSpec]
) -> None:
    """Raise UsageError where the trace that a server continues has not the stage's layers."""
    known = [run.get("capture"), *run.get("layers", ())]
    for value in (str(capture), *(spec.to_json() for spec in layers)):
        if run and value not in known:
            raise UsageError(
                f"Cannot continue {files.root}, which has not {value!s:.80}. Record into a new "
                "place."
            )


def write_refusal(path: Path, reason: str, facts: dict[str, Any], *, force: bool = False) -> None:
    """Leave a trace without rows that says why there are none, unless something is there."""
    files = TraceFiles(path)
    with suppress(MoeProbeError, OSError):
        if not files.pipeline_stages():
            TraceWriter(path, layers=[], run=facts, force=force).close(
                "refused", facts={"reason": reason}
            )
        elif force or not files.run.exists():
            # Other stages were quicker and record already: their rows alone are no trace.
            with writer_lock(files) as is_ours:
                if is_ours:
                    files.clear()
                    write_run(files, {**facts, **_REFUSED, "reason": reason})
