"""One recording: the model, its probe, lm-eval, and the trace, from begin to end."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from lm_eval import evaluator, simple_evaluate

from moe_probe.errors import UsageError
from moe_probe.evaluation.engines import backend_of
from moe_probe.evaluation.engines.backend import Closed, Recording
from moe_probe.evaluation.plan import RecordOptions, RecordPlan
from moe_probe.evaluation.progress import RunProgress
from moe_probe.recording.completeness import Completeness
from moe_probe.recording.prior import PriorRun
from moe_probe.recording.stages import open_trace

_CORRECT_METRICS = ("acc", "exact_match")


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What a finished recording has to say."""

    path: Path
    """The trace; on the server's machine if it was recorded there."""
    completeness: Completeness
    num_sequences: int | None
    """None where the trace cannot be read from here."""
    results: dict[str, Any]
    """lm-eval's results, as `make_table` takes them."""


def run_recording(plan: RecordPlan) -> RunResult:
    """Load the model, evaluate it under capture, and close the trace.

    However it ends, what was recorded is kept, and run.json says how it ended.

    Raises:
        CaptureError: a layer cannot be read; found before the evaluation starts.
        UsageError: the output belongs to another run, or the model or its data cannot be loaded.
        KeyboardInterrupt: passed on after the trace was closed.
    """
    prior = _prior_run(plan.options)
    for name in ("lm_eval", "transformers", "datasets", "accelerate"):
        logging.getLogger(name).setLevel(logging.ERROR)
    items = plan.tasks.load(plan.num_fewshot)
    lm = backend_of(plan.options).load(plan.options)
    return record_evaluation(plan, lm, items, prior=prior)


def record_evaluation(
    plan: RecordPlan, lm: Any, items: list[Any], *, prior: PriorRun | None = None
) -> RunResult:
    """Evaluate a loaded model on loaded tasks under capture; otherwise as `run_recording`."""
    options = plan.options
    with (
        RunProgress(quiet=options.quiet) as progress,
        backend_of(options).record(plan, lm, prior=prior, progress=progress.update) as recording,
        _closing(recording) as outcome,
    ):
        recording.start(plan.tasks.manager.load(items)["tasks"], plan.tasks.facts)
        outcome.results = evaluate(plan, lm, items)
    closed = outcome.closed
    assert closed is not None
    return RunResult(
        path=closed.path,
        completeness=closed.completeness,
        num_sequences=open_trace(closed.path).sequences.num_rows if closed.is_local else None,
        results=outcome.results,
    )


def evaluate(plan: RecordPlan, lm: Any, items: list[Any]) -> dict[str, Any]:
    """Run lm-eval as a plan says; what it prints goes to stderr."""
    # lm-eval prints notices to stdout, which is for results, and asks git for the commit of the
    # working directory, which complains on stderr where that is no checkout.
    with redirect_stdout(sys.stderr), mock.patch.object(evaluator, "get_git_commit_hash"):
        results = simple_evaluate(
            model=lm,
            tasks=items,
            task_manager=plan.tasks.manager,
            num_fewshot=plan.num_fewshot,
            limit=plan.options.limit,
        )
    return dict(results)


@dataclass
class _Outcome:
    results: dict[str, Any]
    closed: Closed | None = None


@contextmanager
def _closing(recording: Recording) -> Iterator[_Outcome]:
    """Close the trace with the status the block deserves."""
    outcome = _Outcome({})
    status: str | None = "failed"
    try:
        yield outcome
        recording.stop()
        status = None
    except KeyboardInterrupt:
        status = "interrupted"
        raise
    finally:
        if status is not None:
            recording.abandon()
        facts = {"results": outcome.results.get("results", {})}
        outcome.closed = recording.close(status, facts, _correct(outcome.results))


def _prior_run(options: RecordOptions) -> PriorRun | None:
    """Read what an interrupted recording has; raises UsageError if it was another one."""
    if not options.resume:
        return None
    trace = open_trace(options.output)
    old, new = trace.run.get("options", {}), options.fingerprint()
    for name, value in new.items():
        if old.get(name) != value:
            raise UsageError(
                f"Cannot resume {options.output}: its {name} was {old.get(name)!r}, now it is "
                f"{value!r}. Use the same arguments, or record into a new --output."
            )
    return PriorRun(trace.sequences, trace.run)


def _correct(results: Mapping[str, Any]) -> dict[tuple[str, int], bool]:
    """Whether each document was answered correctly, by lm-eval's own metric."""
    correct = {}
    for task, samples in (results.get("samples") or {}).items():
        for sample in samples:
            value = next((sample[m] for m in _CORRECT_METRICS if m in sample), None)
            if value in (0, 1):
                correct[task, int(sample["doc_id"])] = bool(value)
    return correct
