"""A real `vllm serve` on loopback, with the plugin in it, and clients that load it."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import requests

from tests.vllm.engines import EAGER, ENVIRONMENT, ROOT

# The `vllm` command asks for the metadata of a distribution that builds for a CPU do not have.
_METADATA = str(Path(__file__).parent / "metadata_shim")


@dataclass
class Server:
    """A running server."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def probe(self, command: str, payload: Any = None) -> dict[str, Any]:
        """Give the plugin a command; return what the worker answers."""
        url = f"{self.url}/v1/moe_probe/{command}"
        ask = requests.get if command == "status" else requests.post
        response = ask(url, json=payload, timeout=60)
        response.raise_for_status()
        (worker,) = response.json()["workers"]
        return dict(worker)

    def end(self, number: int) -> None:
        """Send a signal, to all processes if it is SIGKILL, and wait for the first one's end."""
        if number == signal.SIGKILL:
            os.killpg(self.process.pid, number)
        else:
            self.process.send_signal(number)
        self.process.wait(60)


@contextmanager
def server(
    folder: Path, trace: Path, *options: str, environment: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """Start `vllm serve` on a free port and wait until it answers; none of it stays."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = trace.with_name(f"{trace.name}.log")
    command = [str(Path(sys.executable).with_name("vllm")), "serve", str(folder), *options]
    command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", "float32"]
    command += ["--enforce-eager", "--max-model-len", "512", "--max-num-seqs", "64"]
    variables = {
        **os.environ,
        **ENVIRONMENT,
        **EAGER,
        "PYTHONPATH": _METADATA,
        "VLLM_PLUGINS": "moe_probe",
        "MOE_PROBE_TRACE": str(trace),
        **(environment or {}),
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=variables,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    running = Server(f"http://127.0.0.1:{port}", process, log)
    try:
        _wait_until_ready(running)
        yield running
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait_until_ready(running: Server, seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and running.process.poll() is None:
        try:
            if requests.get(f"{running.url}/health", timeout=5).ok:
                return
        except requests.RequestException:
            pass
        time.sleep(0.5)
    raise AssertionError(running.log.read_text()[-6000:])


@dataclass
class Exchange:
    """One request of a client; times are of the monotonic clock."""

    name: str
    prompt: list[int]
    sent: float
    first: float = 0.0
    finished: float = 0.0
    generated: list[int] = field(default_factory=list)


async def stream(session: aiohttp.ClientSession, url: str, prompt: list[int], n: int) -> Exchange:
    """Let a prompt be continued by `n` tokens, token by token."""
    name = f"client-{random.getrandbits(64):016x}"
    body = {
        "prompt": prompt,
        "max_tokens": n,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "return_token_ids": True,
        "vllm_xargs": {"task": "load", "subject": f"s{len(prompt) % 3}", "doc": len(prompt)},
    }
    exchange = Exchange(name, prompt, time.monotonic())
    headers = {"X-Request-Id": name}
    async with session.post(f"{url}/v1/completions", json=body, headers=headers) as response:
        response.raise_for_status()
        async for line in response.content:
            if not line.startswith(b"data: {"):
                continue
            exchange.first = exchange.first or time.monotonic()
            for choice in json.loads(line[6:])["choices"]:
                exchange.generated += choice["token_ids"] or []
    exchange.finished = time.monotonic()
    return exchange


async def load(url: str, *, clients: int, seconds: float, seed: int) -> list[Exchange]:
    """Keep a number of clients streaming for a while; return what they exchanged."""
    end = time.monotonic() + seconds
    done: list[Exchange] = []

    async def client(number: int) -> None:
        random_of = random.Random(seed * 1000 + number)
        timeout = aiohttp.ClientTimeout(total=120)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            while time.monotonic() < end:
                length = random_of.randint(8, 150)
                prompt = [random_of.randrange(256) for _ in range(length)]
                done.append(await stream(session, url, prompt, random_of.randint(1, 24)))

    await asyncio.gather(*(client(number) for number in range(clients)))
    return done
