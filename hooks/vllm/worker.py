"""The plugin in an engine's worker: around the model runner, never in its way.

Whatever goes wrong here is said once and ends the recording, not the engine.
"""

from __future__ import annotations

import atexit
import logging
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from moe_probe.errors import MoeProbeError
from moe_probe.hooks.step_buffer import StepRows
from moe_probe.hooks.vllm.batch import new_requests, read_batch
from moe_probe.hooks.vllm.binding import bind, find_routers
from moe_probe.hooks.vllm.buffers import StepBuffers
from moe_probe.hooks.vllm.commands import Commands
from moe_probe.hooks.vllm.parallel import Place, find_place
from moe_probe.hooks.vllm.scheduler import ended_requests
from moe_probe.hooks.vllm.session import Step
from moe_probe.hooks.vllm.settings import Settings
from moe_probe.trace import Capture

_log = logging.getLogger("vllm.moe_probe")


def install() -> None:
    """Make every worker of this process carry a probe.

    Raises ImportError or AttributeError where this vLLM has no such worker.
    """
    from vllm.v1.worker.worker_base import WorkerWrapperBase

    if getattr(WorkerWrapperBase, "moe_probe_is_installed", False):
        return
    init_device, shutdown = WorkerWrapperBase.init_device, WorkerWrapperBase.shutdown

    def init_device_with_probe(self: Any) -> Any:
        result = init_device(self)
        try:
            if os.environ.get("MOE_PROBE_TRACE"):
                self.worker.moe_probe = probe = Probe(self.worker)
                self.worker.moe_probe_call = probe.commands.call
        except Exception:
            _log.exception("moe-probe does not fit this vLLM and records nothing.")
        return result

    def shutdown_with_probe(self: Any) -> Any:
        probe = getattr(self.__dict__.get("worker"), "moe_probe", None)
        if probe is not None:
            probe.commands.close_quietly()
        return shutdown(self)

    WorkerWrapperBase.init_device = init_device_with_probe
    WorkerWrapperBase.shutdown = shutdown_with_probe
    WorkerWrapperBase.moe_probe_is_installed = True


class Probe:
    """Watches one worker's model runner.

    Args:
        worker: vLLM's worker, its device initialised and its model not loaded.
    """

    def __init__(self, worker: Any) -> None:
        self._worker, self._runner = worker, worker.model_runner
        self.commands = Commands(worker.vllm_config)
        self._buffers: StepBuffers | None = None
        self._stream: torch.cuda.Stream | None = None
        self._load_model, self._execute = self._runner.load_model, self._runner.execute_model
        self._runner.load_model = self._load_and_attach
        self._runner.execute_model = self._execute_and_record

    def _load_and_attach(self, *args: Any, **kwargs: Any) -> Any:
        self._separate_compile_cache()
        result = self._load_model(*args, **kwargs)
        try:
            settings = Settings.from_environment()
            self.commands.configure(settings)
            place = find_place(self._worker.vllm_config)
            if place.writes:
                self._attach(settings, place)
        except MoeProbeError as error:
            self.commands.refuse(str(error))
        except Exception as error:
            _log.exception("moe-probe does not fit this vLLM.")
            self.commands.refuse(f"This vLLM cannot be recorded ({type(error).__name__}: {error}).")
        return result

    def _separate_compile_cache(self) -> None:
        """Keep graphs compiled with the probe apart from those without, which look the same."""
        extra = getattr(self._worker.vllm_config, "additional_config", None)
        if isinstance(extra, dict):
            extra["moe_probe"] = "capture"

    def _attach(self, settings: Settings, place: Place) -> None:
        config = self._worker.vllm_config
        model = self._runner.get_model()
        sites = find_routers(model, config.model_config.hf_text_config, settings.capture)
        if not sites:
            # A pipeline stage of dense layers: the others have all there is to record.
            return
        captured = getattr(config.compilation_config, "max_cudagraph_capture_size", None) or 0
        with torch.inference_mode(False):
            self._buffers = StepBuffers(
                [site.spec for site in sites],
                [site.scale for site in sites],
                max_tokens=max(config.scheduler_config.max_num_batched_tokens, captured),
                device=self._runner.device,
                keep_weights=settings.capture is Capture.WEIGHTS,
                sigmoid_layers=[i for i, site in enumerate(sites) if site.is_sigmoid],
            )
        bind(sites, self._buffers)
        if self._runner.device.type == "cuda":
            self._stream = torch.cuda.Stream(self._runner.device)  # type: ignore[no-untyped-call]
        self.commands.attach(place, self._buffers.layers)
        atexit.register(self.commands.close_quietly)

    def _execute_and_record(self, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        # One runner measures and warms up by this way too.
        is_dummy = kwargs.get("dummy_run") or (len(args) > 1 and args[1])
        records = self._buffers is not None and self.commands.is_open and not is_dummy
        if not records:
            return self._execute(scheduler_output, *args, **kwargs)
        self._guarded(self._begin_step, scheduler_output)
        result = self._execute(scheduler_output, *args, **kwargs)
        self._guarded(self._end_step, scheduler_output)
        return result

    def _guarded(self, function: Callable[[Any], None], scheduler_output: Any) -> None:
        try:
            function(scheduler_output)
        except Exception as error:
            _log.exception("moe-probe stops recording.")
            self.commands.fail(f"{type(error).__name__}: {error}")

    def _begin_step(self, scheduler_output: Any) -> None:
        num_tokens = scheduler_output.total_num_scheduled_tokens
        if num_tokens and self._buffers is not None:
            self._buffers.clear(num_tokens)

    def _end_step(self, scheduler_output: Any) -> None:
        commands, buffers = self.commands, self._buffers
        assert buffers is not None
        ended = commands.note_ended(ended_requests(scheduler_output))
        admitted = commands.note_new(new_requests(scheduler_output))
        num_tokens = scheduler_output.total_num_scheduled_tokens
        if num_tokens and commands.open_requests:
            batch = read_batch(self._runner, num_tokens)
            packed = buffers.rows(num_tokens, batch.position_T, batch.token_id_T)
            rows = StepRows(packed, stream=self._stream)
            commands.step(Step(ended, admitted, batch.request_ids, batch.counts_Q, rows))
        elif ended or admitted:
            commands.step(Step(ended, admitted, [], np.empty(0, np.int64), None))
