"""A recording that is killed and resumed ends as if it had never stopped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from moe_probe.errors import UsageError
from moe_probe.trace import Trace, open_trace
from tests.evaluation.record_helpers import record
from tests.trace.recordings import stored_passes

REPOSITORY = Path(__file__).parents[2]
TASKS = ["toy_alpha", "toy_beta", "toy_words"]
KEYS = ["layer", "expert", "task", "subject", "area", "segment"]


@pytest.fixture(scope="module")
def whole(byte_model: Path, toy_tasks: Path, tmp_path_factory: pytest.TempPathFactory) -> Trace:
    output = tmp_path_factory.mktemp("whole") / "trace"
    record(byte_model, TASKS, output, include_path=toy_tasks, num_fewshot=2)
    return open_trace(output)


def counts(trace: Trace) -> pd.DataFrame:
    table: pd.DataFrame = trace.counts.to_pandas()
    return table.groupby(KEYS)[["count", "unique_count"]].sum()


def answers(trace: Trace) -> dict[Any, Any]:
    return {
        (row["task"], row["doc_id"], choice): (loglik, row["correct"])
        for row in trace.sequences.to_pylist()
        for choice, loglik in zip(row["choices"], row["choice_logliks"], strict=True)
    }


def test_ten_kills_lose_nothing_and_count_nothing_twice(
    byte_model: Path, toy_tasks: Path, tmp_path: Path, whole: Trace
) -> None:
    arguments = {
        "model": str(byte_model),
        "tasks": TASKS,
        "include_path": str(toy_tasks),
        "output": str(tmp_path / "trace"),
        "witness": str(tmp_path / "witness"),
        "kills": 10,
        "seed": 20,
        "max_delay": 0.1,
        "pause": 0.04,
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.evaluation.kill_server", json.dumps(arguments)],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    outcome = json.loads(done.stdout.splitlines()[-1])
    assert outcome["kills"] == 10
    assert outcome["lost"] == []
    trace = open_trace(tmp_path / "trace")
    assert trace.run["status"] == "complete"
    assert trace.run["completeness"]["shortfall"] == 0
    assert trace.sequences.num_rows == whole.sequences.num_rows == outcome["sequences"]
    assert counts(trace).equals(counts(whole))
    # Passes of a resumed recording are numbered on: no number names passes of two processes.
    by_pass = defaultdict(set)
    for (sequence, _), number in stored_passes(trace).items():
        by_pass[number].add(sequence)
    assert max(map(len, by_pass.values())) <= 4
    assert min(by_pass) == 0
    recorded, expected = answers(trace), answers(whole)
    assert recorded.keys() == expected.keys()
    for key, (loglik, correct) in expected.items():
        # Another batch may round otherwise in the last place; the routing does not change.
        assert recorded[key] == (pytest.approx(loglik, abs=1e-4), correct)


def test_resuming_a_finished_run_runs_nothing_again(
    byte_model: Path, toy_tasks: Path, tmp_path: Path
) -> None:
    output = tmp_path / "trace"
    record(byte_model, ["toy_beta"], output, include_path=toy_tasks)
    before = open_trace(output)
    record(byte_model, ["toy_beta"], output, include_path=toy_tasks, resume=True)
    after = open_trace(output)
    assert counts(after).equals(counts(before))
    assert after.sequences.equals(before.sequences)
    assert after.run["completeness"]["computed_tokens"] == 0
    assert after.run["prefix_check"] == before.run["prefix_check"]
    assert before.run["prefix_check"]["rows"] > 0
    assert after.run["results"] == before.run["results"]


def test_only_the_same_run_can_be_resumed(
    byte_model: Path, toy_tasks: Path, tmp_path: Path
) -> None:
    output = tmp_path / "trace"
    record(byte_model, ["toy_beta"], output, include_path=toy_tasks)
    with pytest.raises(UsageError, match="its num_fewshot was None, now it is 1"):
        record(byte_model, ["toy_beta"], output, include_path=toy_tasks, resume=True, num_fewshot=1)
    with pytest.raises(UsageError, match="Use --resume to continue it or --force"):
        record(byte_model, ["toy_beta"], output, include_path=toy_tasks)
