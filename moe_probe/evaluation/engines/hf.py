"""Recording a model of transformers in this process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import torch

from moe_probe import __version__
from moe_probe.errors import UsageError
from moe_probe.evaluation.engines.backend import Closed, Correct, run_facts
from moe_probe.evaluation.engines.hf_model import MoeProbeHF
from moe_probe.evaluation.plan import RecordOptions, RecordPlan
from moe_probe.hooks.config_facts import recorded_facts, text_config
from moe_probe.hooks.transformers import TransformersCapture
from moe_probe.recording.prior import PriorRun
from moe_probe.recording.recorder import Progress, Recorder
from moe_probe.trace import Capture, TraceWriter
from moe_probe.trace.schema import segment_tokens


class HFBackend:
    """transformers, by forward hooks."""

    def load(self, options: RecordOptions) -> MoeProbeHF:
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

    @contextmanager
    def record(
        self, plan: RecordPlan, lm: MoeProbeHF, *, prior: PriorRun | None, progress: Progress
    ) -> Iterator[_Recording]:
        options = plan.options
        keep_weights = options.capture is Capture.WEIGHTS
        with TransformersCapture(
            lm.model, keep_weights=keep_weights, baseline=options.baseline
        ) as capture:
            writer = TraceWriter(
                options.output,
                layers=capture.layers,
                capture=options.capture,
                run=_run_facts(plan, lm),
                resume=options.resume,
                force=options.force,
                segment_tokens=segment_tokens(lm.max_length),
            )
            recorder = Recorder(
                writer, sample_every=options.sample_every, prior=prior, progress=progress
            )
            yield _Recording(lm, capture, recorder)


class _Recording:
    def __init__(self, lm: MoeProbeHF, capture: TransformersCapture, recorder: Recorder) -> None:
        self._lm, self._capture, self._recorder = lm, capture, recorder

    def start(self, tasks: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
        self._lm.start_recording(self._recorder, self._capture, tasks=tasks, facts=facts)

    def stop(self) -> None:
        self._lm.stop_recording()

    def abandon(self) -> None:
        self._lm.abandon_recording()

    def close(
        self, status: str | None, facts: Mapping[str, Any], correct: Correct | None
    ) -> Closed:
        totals, writer = self._recorder.totals, self._recorder.writer
        books = {
            "completeness": totals.to_json(),
            "prefix_check": asdict(self._recorder.prefixes.check),
        }
        by_books = "complete" if totals.shortfall == 0 else "incomplete"
        writer.close(status or by_books, facts={**books, **facts}, correct=correct)
        return Closed(totals, writer.files.root)


def _run_facts(plan: RecordPlan, lm: MoeProbeHF) -> dict[str, Any]:
    config = plan.config
    return {
        **run_facts(plan),
        "model_revision": getattr(config, "_commit_hash", None),
        "model_facts": {
            "model_type": config.model_type,
            "num_layers": int(text_config(config).num_hidden_layers),
            **recorded_facts(config),
            "num_parameters": plan.memory.num_parameters,
        },
        "tokenizer": type(lm.tokenizer).__name__,
        "engine": {"name": "transformers", "version": version("transformers")},
        "versions": {
            "moe-probe": __version__,
            "torch": torch.__version__,
            "lm_eval": version("lm_eval"),
        },
        "device": _device_name(plan.options.device),
        "dtype": str(lm.model.dtype).removeprefix("torch."),
        "max_length": lm.max_length,
        "slot_order": "descending_weight",
        "weights": "multiplier handed to the experts module",
    }


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device
