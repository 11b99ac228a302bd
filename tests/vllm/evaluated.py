"""`moe-probe record` with the vLLM engine: in this process, or as a user's command."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any
from unittest import mock

import pandas as pd
import torch

from moe_probe.analysis.reading.rules import Rule
from moe_probe.analysis.report import write_report
from moe_probe.analysis.settings import Settings
from moe_probe.evaluation.run import RunResult
from moe_probe.trace import open_trace
from tests.evaluation.record_helpers import record
from tests.vllm.engines import EAGER, ENVIRONMENT, ONE_PROCESS, ROOT

ENGINE = {"enforce_eager": True, "max_model_len": 512, "max_num_seqs": 16}


@contextmanager
def engine_environment() -> Iterator[None]:
    """What an engine in this process needs, and nothing left of it afterwards."""
    with (
        mock.patch.dict(os.environ, {**ENVIRONMENT, **ONE_PROCESS}),
        mock.patch.object(torch, "set_num_threads", torch.set_num_threads),
        mock.patch("vllm.plugins.plugins_loaded", False),
        torch._dynamo.config.patch(disable=True),
    ):
        yield


def record_with_vllm(
    model: Path | str, tasks: list[str], output: Path, **changes: Any
) -> RunResult:
    """Record with `--backend vllm`, the engine in this process."""
    arguments = {**ENGINE, **changes.pop("model_args", {})}
    with engine_environment():
        return record(
            model,
            tasks,
            output,
            backend="vllm",
            model_args=arguments,
            **{"batch_size": "auto", **changes},
        )


def moe_probe(
    *arguments: object, environment: Mapping[str, str] | None = None, timeout: float = 400
) -> subprocess.CompletedProcess[str]:
    """Run a command of moe-probe as a user does, engines in processes of their own."""
    return subprocess.run(
        [sys.executable, "-m", "moe_probe", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, **ENVIRONMENT, **EAGER, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def experts_table(path: Path, output: Path) -> str:
    """The table `experts` of a trace's report by the rule `question`, as CSV."""
    write_report(open_trace(path), output, Settings(Rule.QUESTION), tables_only=True)
    return (output / "tables" / "experts.csv").read_text()


def counted_columns(table: str) -> str:
    """Its columns that depend on no order of documents.

    Leading tokens that subjects share belong to the document that ran first, and engines have
    orders of their own.
    """
    columns = ["layer", "expert", "count", "frequency", "relative_load"]
    return pd.read_csv(StringIO(table), dtype=str)[columns].to_csv(index=False)
