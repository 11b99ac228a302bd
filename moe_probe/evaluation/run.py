"""One recording: the model, its hooks, lm-eval, and the trace, from begin to end."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from lm_eval import evaluator, simple_evaluate

from moe_probe import __version__
from moe_probe.errors import UsageError
from moe_probe.evaluation.hf import MoeProbeHF
from moe_probe.evaluation.plan import RecordOptions, RecordPlan
from moe_probe.evaluation.progress import RunProgress
from moe_probe.hooks.config_facts import expected_moe_layers, text_config, top_k
from moe_probe.hooks.transformers import TransformersCapture
from moe_probe.recording.completeness import Completeness
from moe_probe.recording.prior import PriorRun
from moe_probe.recording.recorder import Recorder
from moe_probe.trace import Capture, TraceWriter, open_trace
from moe_probe.trace.schema import SEGMENT_TOKENS

# Staging is reserved for the longest sequence: of a model for ten million tokens, too much.
_LONGEST = 1 << 18
_CORRECT_METRICS = ("acc", "exact_match")


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What a finished recording has to say."""

    path: Path
    completeness: Completeness
    num_sequences: int
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
    items = plan.tasks.load()
    return record_evaluation(plan, load_model(plan.options), items, prior=prior)


def record_evaluation(
    plan: RecordPlan, lm: MoeProbeHF, items: list[Any], *, prior: PriorRun | None = None
) -> RunResult:
    """Evaluate a loaded model on loaded tasks under capture; otherwise as `run_recording`."""
    options = plan.options
    with ExitStack() as stack:
        keep_weights = options.capture is Capture.WEIGHTS
        capture = TransformersCapture(
            lm.model, keep_weights=keep_weights, baseline=options.baseline
        )
        stack.enter_context(capture)
        writer = TraceWriter(
            options.output,
            layers=capture.layers,
            capture=options.capture,
            run=_run_facts(plan, lm),
            resume=options.resume,
            force=options.force,
            segment_tokens=max(SEGMENT_TOKENS, min(lm.max_length, _LONGEST) + 1),
        )
        progress = stack.enter_context(RunProgress(quiet=options.quiet))
        recorder = Recorder(
            writer, sample_every=options.sample_every, prior=prior, progress=progress.update
        )
        with _closing(writer, recorder, lm) as outcome:
            lm.start_recording(
                recorder,
                capture,
                tasks=plan.tasks.manager.load(items)["tasks"],
                facts=plan.tasks.facts,
            )
            outcome.results = evaluate(plan, lm, items)
    return RunResult(
        path=options.output,
        completeness=recorder.totals,
        num_sequences=open_trace(options.output).sequences.num_rows,
        results=outcome.results,
    )


def evaluate(plan: RecordPlan, lm: MoeProbeHF, items: list[Any]) -> dict[str, Any]:
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


@contextmanager
def _closing(writer: TraceWriter, recorder: Recorder, lm: MoeProbeHF) -> Iterator[_Outcome]:
    """Close the trace with the status the block deserves."""
    outcome = _Outcome({})
    status = "failed"
    try:
        yield outcome
        lm.stop_recording()
        status = "complete" if recorder.totals.shortfall == 0 else "incomplete"
    except KeyboardInterrupt:
        status = "interrupted"
        raise
    finally:
        if status in ("failed", "interrupted"):
            lm.abandon_recording()
        facts = {
            "completeness": recorder.totals.to_json(),
            "prefix_check": asdict(recorder.prefixes.check),
            "results": outcome.results.get("results", {}),
        }
        writer.close(status, facts=facts, correct=_correct(outcome.results))


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


def load_model(options: RecordOptions) -> MoeProbeHF:
    """Load the model under lm-eval's class; raises UsageError where that fails."""
    arguments = {"dtype": options.dtype, "device": options.device, **options.model_args}
    try:
        return MoeProbeHF(
            pretrained=options.model.identifier, batch_size=options.batch_size, **arguments
        )
    except (OSError, ValueError, TypeError) as error:
        cause = str(error).strip().split("\n")[0].rstrip(".")
        raise UsageError(
            f"{options.model.identifier} cannot be loaded ({type(error).__name__}: {cause}). "
            "Check --model, --dtype, --device and --model-args."
        ) from error


def _run_facts(plan: RecordPlan, lm: MoeProbeHF) -> dict[str, Any]:
    options, config = plan.options, plan.config
    layers = expected_moe_layers(config)
    return {
        "model": options.model.name,
        "model_given": options.model.given,
        "model_revision": getattr(config, "_commit_hash", None),
        "model_facts": {
            "model_type": config.model_type,
            "num_layers": int(text_config(config).num_hidden_layers),
            "num_moe_layers": None if layers is None else len(layers),
            "top_k": top_k(config),
            "num_parameters": plan.memory.num_parameters,
        },
        "tokenizer": type(lm.tokenizer).__name__,
        "engine": {"name": "transformers", "version": version("transformers")},
        "versions": {
            "moe-probe": __version__,
            "torch": torch.__version__,
            "lm_eval": version("lm_eval"),
        },
        "device": _device_name(options.device),
        "dtype": str(lm.model.dtype).removeprefix("torch."),
        "max_length": lm.max_length,
        "num_fewshot": plan.num_fewshot,
        "options": options.fingerprint(),
        "slot_order": "descending_weight",
        "weights": "multiplier handed to the experts module",
    }


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


def _correct(results: Mapping[str, Any]) -> dict[tuple[str, int], bool]:
    """Whether each document was answered correctly, by lm-eval's own metric."""
    correct = {}
    for task, samples in (results.get("samples") or {}).items():
        for sample in samples:
            value = next((sample[m] for m in _CORRECT_METRICS if m in sample), None)
            if value in (0, 1):
                correct[task, int(sample["doc_id"])] = bool(value)
    return correct
