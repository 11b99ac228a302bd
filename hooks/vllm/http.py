"""Routes of vLLM's API server by which a recording is steered; vLLM adds them only if asked to.

They lie under /v1, which the server's own API key guards.
"""

from __future__ import annotations

import os
from typing import Any

from fastapi import APIRouter, FastAPI, HTTPException, Request

_COMMANDS = ("start", "stop", "flush", "answer", "evaluation")
_MAX_BODY_BYTES = 64 << 20


class EndpointPlugin:
    """What vLLM's `endpoint_plugins` group expects.

    POST /v1/moe_probe/COMMAND gives a command to every worker, GET /v1/moe_probe/status asks them.
    The answer has one entry per worker that writes: `{"workers": [...]}`.
    """

    name = "moe_probe"
    required_tasks = ("generate",)

    def attach_router(self, app: FastAPI) -> None:
        """Add the routes, unless the server was started without a trace."""
        if not os.environ.get("MOE_PROBE_TRACE"):
            return
        router = APIRouter()
        router.add_api_route("/v1/moe_probe/status", _status, methods=["GET"])
        router.add_api_route("/v1/moe_probe/{command}", _command, methods=["POST"])
        app.include_router(router)

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        """Keep what reaches the engine."""
        state.moe_probe_engine = engine_client


async def _status(request: Request) -> dict[str, Any]:
    return await _call(request, "status", None)


async def _command(command: str, request: Request) -> dict[str, Any]:
    if command not in _COMMANDS:
        raise HTTPException(404, f"No command is called {command!r:.40}: {', '.join(_COMMANDS)}.")
    if int(request.headers.get("content-length") or 0) > _MAX_BODY_BYTES:
        raise HTTPException(413, "The body is larger than 64 MiB.")
    payload = None
    if await request.body():
        try:
            payload = await request.json()
        except (ValueError, RecursionError) as error:
            raise HTTPException(400, f"The body is not JSON: {error!s:.200}.") from error
    return await _call(request, command, payload)


async def _call(request: Request, command: str, payload: Any) -> dict[str, Any]:
    engine = request.app.state.moe_probe_engine
    answers = await engine.collective_rpc("moe_probe_call", args=(command, payload))
    workers = [answer for answer in answers if answer is not None]
    failed = [answer for answer in workers if answer.get("error")]
    if failed and command != "status":
        raise HTTPException(409, str(failed[0]["error"]))
    return {"workers": workers}
