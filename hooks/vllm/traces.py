"""Opening the trace that a worker writes, and closing it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from moe_probe.errors import MoeProbeError
from moe_probe.hooks.vllm.parallel import Place
from moe_probe.hooks.vllm.session import Session
from moe_probe.hooks.vllm.settings import Settings
from moe_probe.recording.prior import PriorRun
from moe_probe.trace import LayerSpec, TraceWriter, open_trace
from moe_probe.trace.schema import SEGMENT_TOKENS

# Staging is reserved for the longest sequence: of a model for ten million tokens, too much.
_LONGEST = 1 << 18


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

    Raises UsageError or TraceError where it cannot be written there.
    """
    prior = None
    if settings.is_evaluation:
        if resume:
            trace = open_trace(settings.path)
            prior = PriorRun(trace.sequences, trace.run)
    else:
        resume = (settings.path / "run.json").exists()
    writer = TraceWriter(
        settings.path,
        layers=layers,
        capture=settings.capture,
        run=facts,
        rank=place.data_rank,
        group=facts["engine"]["instance"] if place.num_data_ranks > 1 else "",
        resume=resume,
        force=force,
        segment_tokens=max(SEGMENT_TOKENS, min(facts["max_length"], _LONGEST) + 1),
        max_bytes=settings.max_bytes,
    )
    return Session(
        writer,
        keeps_tokens=settings.keeps_tokens,
        waits=settings.is_evaluation,
        prior=prior,
        sample_every=sample_every,
    )


def write_refusal(path: Path, reason: str, facts: dict[str, Any], *, force: bool = False) -> None:
    """Leave a trace without rows that says why there are none, unless something is there."""
    with suppress(MoeProbeError):
        TraceWriter(path, layers=[], run=facts, force=force).close(
            "refused", facts={"reason": reason}
        )
