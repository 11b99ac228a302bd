"""A real server under load: what was asked while it recorded is in the trace, and no more."""

from __future__ import annotations

import asyncio
import json
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from moe_probe.trace import Trace, open_trace
from tests.evaluation.record_helpers import record
from tests.vllm.evaluated import counted_columns, experts_table, moe_probe
from tests.vllm.recorded import sequences_of
from tests.vllm.reference import Reference, assert_same_routing
from tests.vllm.served import Exchange, Server, load, server

SECONDS = 60.0
CLIENTS = 32
STEPS = ((15, "stop"), (22, "start"), (30, "flush"), (40, "stop"), (46, "start"))


def steer(running: Server, begin: float) -> list[tuple[float, float, bool]]:
    """Stop, start and flush in turn; return when each period surely began and ended, and was on."""
    periods = []
    since, is_on = time.monotonic(), True
    for moment, command in (
        (15, "stop"),
        (22, "start"),
        (30, "flush"),
        (40, "stop"),
        (46, "start"),
    ):
        time.sleep(max(begin + moment - time.monotonic(), 0))
        asked = time.monotonic()
        running.probe(command)
        if command != "flush":
            periods.append((since, asked, is_on))
            since, is_on = time.monotonic(), command == "start"
    return [*periods, (since, float("inf"), is_on)]


def surely(
    exchanges: list[Exchange], periods: list[tuple[float, float, bool]], is_on: bool
) -> list[Exchange]:
    """The requests the engine surely began while it did, or did not, record."""
    return [
        exchange
        for exchange in exchanges
        for since, until, was_on in periods
        if was_on is is_on and since <= exchange.sent and exchange.first < until
    ]


def test_clients_are_recorded_whole_while_recording_is_on_and_not_while_it_is_off(
    checkpoint: Callable[[str], Path], reference: Callable[[str], Reference], tmp_path: Path
) -> None:
    with server(checkpoint("qwen3_moe"), tmp_path / "t") as running:
        begin, periods = time.monotonic(), []
        steering = threading.Thread(target=lambda: periods.extend(steer(running, begin)))
        steering.start()
        exchanges = asyncio.run(load(running.url, clients=CLIENTS, seconds=SECONDS, seed=1))
        steering.join()
        assert open_trace(tmp_path / "t").is_recording
        running.end(signal.SIGTERM)

    rows = {row["request_id"]: row for row in sequences_of(tmp_path / "t")}
    run = open_trace(tmp_path / "t").run
    assert run["status"] == "complete"
    assert run["completeness"]["shortfall"] == 0
    assert run["completeness"]["dropped_tokens"] == 0
    recorded, left_out = surely(exchanges, periods, True), surely(exchanges, periods, False)
    assert len(recorded) > 100
    assert len(left_out) > 20
    assert not {f"cmpl-{exchange.name}-0" for exchange in left_out} & rows.keys()
    for exchange in recorded:
        assert_whole(rows[f"cmpl-{exchange.name}-0"], exchange)
    # What a token was routed to, for some of them: the trace itself does not know their text.
    for exchange in recorded[:: len(recorded) // 20]:
        assert_routed_as(rows[f"cmpl-{exchange.name}-0"], exchange, reference("qwen3_moe"))


def assert_whole(row: dict[str, Any], exchange: Exchange) -> None:
    prompt = exchange.prompt
    assert row["num_tokens"] == len(prompt) + len(exchange.generated) - 1
    assert row["choice_end"] == len(prompt)
    assert row["positions"].tolist() == list(range(row["cached_tokens"], row["num_tokens"]))
    assert (row["task"], row["subject"]) == ("load", f"s{len(prompt) % 3}")
    assert (row["doc_id"], row["kind"]) == (len(prompt), "served")
    assert row["prompt_hash"] == ""
    assert set(row["token_ids"].tolist()) <= {-1}


def assert_routed_as(row: dict[str, Any], exchange: Exchange, model: Reference) -> None:
    (expected,) = model.routing([[*exchange.prompt, *exchange.generated[:-1]]])
    cached = row["cached_tokens"]
    assert_same_routing(expected.after(cached), row["positions"] - cached, row["ids"])


def opened_at_rest(path: Path) -> Trace:
    """Open a trace once the last of its killed processes is gone."""
    for _ in range(100):
        trace = open_trace(path)
        if not trace.is_recording:
            break
        time.sleep(0.1)
    return trace


def test_an_evaluation_against_a_server_gives_the_table_of_transformers(
    checkpoint: Callable[[str], Path], toy_tasks: Path, tmp_path: Path
) -> None:
    model, tasks = checkpoint("qwen3_moe"), ["toy_alpha", "toy_words", "toy_generate"]
    with server(model, tmp_path / "t") as running:
        command = ["record", "--server", running.url, "--model", model, "--include-path", toy_tasks]
        command += ["--task", ",".join(tasks), "--num-fewshot", 0]
        # What generation takes from the prefix cache is not run again, so it comes once.
        run = moe_probe(*command)
        assert run.returncode == 0, run.stderr
        assert "complete" in run.stdout.splitlines()[-2]
        assert run.stdout.splitlines()[-1] == f"{tmp_path / 't'} on the server"
        running.probe("stop")
        refused = moe_probe(*command)
        assert refused.returncode == 1
        assert "does not record now" in refused.stderr
        unknown = moe_probe(*command, "--resume")
        assert unknown.returncode == 2
        # What was recorded has reached the writer: no signal takes it away.
        running.end(signal.SIGKILL)

    assert opened_at_rest(tmp_path / "t").run["status"] == "killed"
    record(
        model, tasks, tmp_path / "hf", include_path=toy_tasks, model_args={"max_length": 512},
        num_fewshot=0,
    )  # fmt: skip
    own, other = (open_trace(tmp_path / name).sequences.to_pylist() for name in ("t", "hf"))
    logliks = [
        {
            (row["task"], row["doc_id"], choice): loglik
            for row in rows
            for choice, loglik in zip(row["choices"], row["choice_logliks"] or [], strict=False)
        }
        for rows in (own, other)
    ]
    assert logliks[0].keys() == logliks[1].keys()
    np.testing.assert_allclose(
        list(logliks[0].values()), [logliks[1][name] for name in logliks[0]], atol=1e-4
    )
    assert len([row for row in own if row["response"] is not None]) == 8
    tables = [experts_table(tmp_path / name, tmp_path / f"r-{name}") for name in ("t", "hf")]
    assert counted_columns(tables[0]) == counted_columns(tables[1])
    assert json.loads((tmp_path / "t" / "run.json").read_text())["engine"]["name"] == "vllm"
