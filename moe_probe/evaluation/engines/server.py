"""Recording an evaluation in a vLLM server that runs with the plugin."""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import requests

from moe_probe.errors import CaptureError, UsageError
from moe_probe.evaluation.engines.backend import Closed, Correct, run_facts
from moe_probe.evaluation.engines.remote import EngineRecorder
from moe_probe.evaluation.engines.server_model import MoeProbeServer
from moe_probe.evaluation.plan import RecordOptions, RecordPlan
from moe_probe.recording.completeness import Completeness
from moe_probe.recording.prior import PriorRun
from moe_probe.recording.recorder import Progress

_TIMEOUT_SECONDS = 300
_SETTLE_SECONDS = 30.0
_CONCURRENT = "16"


class ServerBackend:
    """A `vllm serve` with moe-probe in it, reached over HTTP."""

    def load(self, options: RecordOptions) -> MoeProbeServer:
        logging.getLogger("httpx").setLevel(logging.ERROR)
        model = _only_model(options.server)
        batch = options.batch_size
        arguments: dict[str, Any] = {
            "tokenizer": options.model.identifier,
            "max_length": int(model["max_model_len"]),
            "num_concurrent": _CONCURRENT if batch == "auto" else batch,
            **options.model_args,
        }
        return MoeProbeServer(
            model=model["id"],
            base_url=f"{options.server}/v1/completions",
            tokenizer_backend="huggingface",
            batch_size=1,
            **arguments,
        )

    @contextmanager
    def record(
        self, plan: RecordPlan, lm: MoeProbeServer, *, prior: PriorRun | None, progress: Progress
    ) -> Iterator[_Recording]:
        server = plan.options.server

        def call(command: str, payload: Any) -> list[Any]:
            return list(_ask(server, f"/v1/moe_probe/{command}", payload)["workers"])

        engine = EngineRecorder(call, progress=progress)
        status = engine.command("flush")
        if not status["is_recording"]:
            raise CaptureError(
                f"The server at {server} does not record now. "
                f"Start it with: curl -X POST {server}/v1/moe_probe/start"
            )
        yield _Recording(lm, engine, plan, status)


class _Recording:
    def __init__(
        self, lm: MoeProbeServer, engine: EngineRecorder, plan: RecordPlan, before: dict[str, Any]
    ) -> None:
        self._lm, self._engine, self._plan, self._before = lm, engine, plan, before
        self._run = uuid.uuid4().hex

    def start(self, tasks: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
        self._lm.start_recording(self._engine, run=self._run, tasks=tasks, facts=facts)

    def stop(self) -> None:
        self._lm.stop_recording()

    def abandon(self) -> None:
        self._lm.abandon_recording()

    def close(
        self, status: str | None, facts: Mapping[str, Any], correct: Correct | None
    ) -> Closed:
        expected = self._engine.prompt_tokens
        after = self._settled(expected if status is None else 0)
        lost = after["lost_tokens"] - self._before["lost_tokens"]
        books = Completeness(
            expected_tokens=max(expected, after["run_tokens"]),
            stored_tokens=after["run_tokens"],
            lost_tokens=lost,
            layers=dict.fromkeys(map(str, after["layers"]), 0),
        )
        evaluation = {
            **run_facts(self._plan),
            "run": self._run,
            "lm_eval": version("lm_eval"),
            "status": status or ("incomplete" if books.shortfall else "complete"),
            **facts,
            "correct": [[*name, value] for name, value in (correct or {}).items()],
        }
        self._engine.command("evaluation", evaluation)
        return Closed(books, Path(after["trace"]), is_local=False)

    def _settled(self, expected: int) -> dict[str, Any]:
        """The server's counts, once it has recorded everything that it answered."""
        deadline = time.monotonic() + _SETTLE_SECONDS
        while True:
            after = self._engine.command("flush", {"run": self._run})
            if after["run_tokens"] >= expected or time.monotonic() > deadline:
                return after
            time.sleep(0.2)


def _only_model(server: str) -> dict[str, Any]:
    models = _ask(server, "/v1/models")["data"]
    return dict(models[0])


def _ask(server: str, path: str, payload: Any = None) -> dict[str, Any]:
    """Send a request to the server; raises UsageError or CaptureError with what is wrong."""
    headers = {}
    if key := os.environ.get("OPENAI_API_KEY"):
        headers["Authorization"] = f"Bearer {key}"
    try:
        if path == "/v1/models":
            response = requests.get(server + path, headers=headers, timeout=_TIMEOUT_SECONDS)
        else:
            response = requests.post(
                server + path, json=payload, headers=headers, timeout=_TIMEOUT_SECONDS
            )
    except requests.RequestException as error:
        raise UsageError(
            f"No server answers at {server} ({type(error).__name__}). Check --server, such as "
            "http://127.0.0.1:8000."
        ) from error
    if response.status_code == requests.codes.not_found:
        raise CaptureError(
            f"The server at {server} runs without moe-probe. Start it with: "
            "VLLM_PLUGINS=moe_probe MOE_PROBE_TRACE=DIR vllm serve MODEL"
        )
    if response.status_code == requests.codes.unauthorized:
        raise UsageError(f"The server at {server} wants a key. Put it into OPENAI_API_KEY.")
    if not response.ok:
        message = response.json().get("error", {}).get("message", response.text)
        raise CaptureError(f"The server at {server} says: {message!s:.300}")
    return dict(response.json())
