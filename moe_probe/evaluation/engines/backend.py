"""What a recording needs of an engine."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from moe_probe.evaluation.plan import RecordOptions, RecordPlan
from moe_probe.recording.completeness import Completeness
from moe_probe.recording.prior import PriorRun
from moe_probe.recording.recorder import Progress

Correct = Mapping[tuple[str, int], bool]


@dataclass(frozen=True)
class Closed:
    """How a recording ended."""

    completeness: Completeness
    path: Path
    is_local: bool = True
    """Whether the trace is on this machine; a server's is on the server's."""


class Recording(Protocol):
    """A recording under way."""

    def start(self, tasks: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
        """Record all rows from now on; tasks are lm-eval's by name, facts their subjects."""

    def stop(self) -> None:
        """Take in what is still on its way, after the last answer."""

    def abandon(self) -> None:
        """Let go of the model after a failure."""

    def close(
        self, status: str | None, facts: Mapping[str, Any], correct: Correct | None
    ) -> Closed:
        """End the trace; without a status, it is complete or incomplete as the books say."""


class Backend(Protocol):
    """An engine that lm-eval can drive and whose routing can be recorded."""

    def load(self, options: RecordOptions) -> Any:
        """Load the model under lm-eval's class; raises UsageError where that fails."""

    def record(
        self, plan: RecordPlan, lm: Any, *, prior: PriorRun | None, progress: Progress
    ) -> AbstractContextManager[Recording]:
        """Open the trace; raises CaptureError where a layer cannot be read."""


def run_facts(plan: RecordPlan) -> dict[str, Any]:
    """What run.json says of an evaluation, whatever engine runs it."""
    options = plan.options
    return {
        "model": options.model.name,
        "model_given": options.model.given,
        "num_fewshot": plan.num_fewshot,
        "options": options.fingerprint(),
    }
