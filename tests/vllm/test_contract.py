"""The parts of vLLM and lm-eval that the plugin stands on: fails loudly when they change."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from tests.vllm.evaluated import engine_environment


def parameters(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)


def test_lm_eval_calls_the_engine_as_expected() -> None:
    with engine_environment():
        from moe_probe.evaluation.engines.vllm import _engine_version_known

        with _engine_version_known():
            from lm_eval.models.vllm_causallms import VLLM
    assert parameters(VLLM._model_generate) == ["self", "requests", "generate", "sampling_params"]
    assert parameters(VLLM._loglikelihood_tokens) == ["self", "requests", "disable_tqdm"]
    assert parameters(VLLM.modify_gen_kwargs) == ["gen_kwargs", "eos", "default_max_gen_toks"]
    source = inspect.getsource(VLLM._loglikelihood_tokens)
    # Answers come in the order of the requests that were sent.
    assert source.index("self._model_generate(") < source.index("self.cache_hook.add_partial(")
    assert "[-max_cxt_len:]" in source
    assert "max_seq_len=self.max_length - 2" in inspect.getsource(VLLM.loglikelihood_rolling)


def test_lm_eval_asks_a_server_as_expected() -> None:
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    assert parameters(LocalCompletionsAPI._create_payload)[:2] == ["self", "messages"]
    assert "[-self.max_length :]" in inspect.getsource(
        LocalCompletionsAPI.batch_loglikelihood_requests
    )
    assert "max_context_len = self.max_length - max_gen_toks" in inspect.getsource(
        LocalCompletionsAPI.generate_until
    )


@pytest.mark.parametrize("name", ["_free_request", "schedule"])
def test_the_scheduler_has_what_the_plugin_wraps(name: str) -> None:
    with engine_environment():
        from vllm.v1.core.sched.scheduler import Scheduler
        from vllm.v1.engine.utils import CoreEngineProcManager
        from vllm.v1.worker.worker_base import WorkerWrapperBase
    assert callable(getattr(Scheduler, name))
    assert parameters(CoreEngineProcManager.shutdown) == ["self", "timeout"]
    assert {"init_device", "shutdown"} <= set(dir(WorkerWrapperBase))
