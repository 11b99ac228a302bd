"""Small vLLM engines on the CPU: in this process, or in one of their own.

An engine started here is quick to start after the first and open to inspection. What needs its own
environment (several processes, a compiler, the second runner) is called in a new process.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import torch

ROOT = Path(__file__).resolve().parent.parent.parent

ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_DO_NOT_TRACK": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_HOST_IP": "127.0.0.1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
EAGER = {"TORCHDYNAMO_DISABLE": "1"}
"""Without it, the first request for log-probabilities waits for a C++ compiler, eager or not."""
ONE_PROCESS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
SECOND_RUNNER = {
    "VLLM_USE_V2_MODEL_RUNNER": "1",
    "TESTS_INTERPRET_TRITON": "1",
    "PYTHONPATH": str(Path(__file__).parent / "v2_shim"),
}
"""vLLM's second model runner, which needs Triton: here interpreted."""
TWO_RANKS = {"VLLM_CPU_OMP_THREADS_BIND": "0|1"}
"""A core for each of two workers, tensor or pipeline parallel."""

_RUN = """
import importlib, json, sys
module, name, arguments, answer = sys.argv[1:]
result = getattr(importlib.import_module(module), name)(*json.loads(arguments))
with open(answer, "w") as file:
    json.dump(result, file)
"""


def settings(folder: Path | str, **arguments: Any) -> dict[str, Any]:
    """Return the arguments of a small engine, some changed."""
    return {
        "model": str(folder),
        "dtype": "float32",
        "enforce_eager": True,
        "max_model_len": 256,
        "max_num_seqs": 16,
        "disable_log_stats": True,
        "seed": 0,
        **arguments,
    }


@contextmanager
def engine(
    folder: Path | str,
    *,
    environment: Mapping[str, str] | None = None,
    prepare: Callable[[], None] = lambda: None,
    **arguments: Any,
) -> Iterator[Any]:
    """Run a `vllm.LLM` in this process; leave the process as it was, as far as vLLM allows.

    Args:
        folder: The checkpoint.
        environment: Variables set while the engine runs.
        prepare: Called before the engine starts, since vLLM loads plugins once per process.
        arguments: Of `vllm.LLM`, beside those of `settings`.
    """
    with (
        # vLLM writes into both.
        mock.patch.dict(os.environ, {**ENVIRONMENT, **ONE_PROCESS, **(environment or {})}),
        mock.patch.object(torch, "set_num_threads", torch.set_num_threads),
        # As in EAGER, which torch would have read already.
        torch._dynamo.config.patch(disable=True),
        _prepared(prepare),
        running(settings(folder, **arguments)) as llm,
    ):
        yield llm


def call_in_new_process(
    function: Callable[..., Any],
    *arguments: Any,
    environment: Mapping[str, str] | None = None,
    timeout: float = 240,
) -> Any:
    """Call a function of a test module in a new process, which has the environment of an engine.

    Arguments and result pass as JSON. Whatever the process started is gone afterwards.
    """
    variables = {**os.environ, **ENVIRONMENT, **(environment or {})}
    with TemporaryDirectory() as folder:
        answer, log = Path(folder) / "answer", Path(folder) / "log"
        names = [function.__module__, function.__qualname__, json.dumps(arguments), str(answer)]
        with log.open("w") as output:
            process = subprocess.Popen(
                [sys.executable, "-c", _RUN, *names],
                cwd=ROOT,
                env=variables,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                code = process.wait(timeout)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                _end_session(process)
        assert code == 0, f"exit status {code}\n{log.read_text()[-20_000:]}"
        return json.loads(answer.read_text())


def generate(
    llm: Any, prompts: Sequence[Sequence[int]], num_tokens: int, **sampling: Any
) -> list[dict[str, Any]]:
    """Continue prompts greedily; return each one's tokens, and prompt log-probabilities if asked.

    `cached` says how many tokens of the prompt the engine did not run.

    Args:
        llm: The engine.
        prompts: Token ids.
        num_tokens: How many to generate.
        sampling: More of `vllm.SamplingParams`, for example `prompt_logprobs=0`.
    """
    from vllm import SamplingParams

    options = {"temperature": 0, "max_tokens": num_tokens, "ignore_eos": True, **sampling}
    outputs = llm.generate(
        [{"prompt_token_ids": list(prompt)} for prompt in prompts],
        SamplingParams(**options),
        use_tqdm=False,
    )
    answers = []
    for prompt, output in zip(prompts, outputs, strict=True):
        by_token = zip(prompt[1:], (output.prompt_logprobs or [])[1:], strict=False)
        answers.append(
            {
                "tokens": list(output.outputs[0].token_ids),
                "logprobs": [scores[token].logprob for token, scores in by_token],
                "cached": output.num_cached_tokens,
            }
        )
    return answers


def start_and_generate(
    arguments: dict[str, Any],
    prompts: list[list[int]],
    num_tokens: int,
    sampling: dict[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Generate with an engine that lives as long as this call, for `call_in_new_process`."""
    with running(arguments) as llm:
        return generate(llm, prompts, num_tokens, **(sampling or {}))


@contextmanager
def running(arguments: dict[str, Any]) -> Iterator[Any]:
    from vllm import LLM

    # vLLM looks at a model's class in a process of its own, to keep CUDA out of this one: ten
    # seconds for every architecture that its cache does not know.
    registry = "vllm.model_executor.models.registry"
    with (
        mock.patch(f"{registry}._run_in_subprocess", lambda function: function()),
        # Plugins load once in a process; here every engine loads them, as it would in its own.
        mock.patch("vllm.plugins.plugins_loaded", False),
    ):
        llm = LLM(**arguments)
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()
        del llm
        gc.collect()


@contextmanager
def _prepared(prepare: Callable[[], None]) -> Iterator[None]:
    prepare()
    yield


def _end_session(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()
