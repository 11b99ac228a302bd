from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = [
    "torch",
    "transformers",
    "vllm",
    "lm_eval",
    "datasets",
    "pandas",
    "pyarrow",
    "matplotlib",
    "numba",
    "llvmlite",
    "numpy",
]

HELP = """
from moe_probe.cli import app
try:
    app({arguments!r})
except SystemExit:
    pass
"""


def heavy_modules_after(code: str) -> list[str]:
    """Run code in a fresh interpreter and return which heavy packages it imported."""
    tail = f"\nimport json, sys\nprint(json.dumps([m for m in {HEAVY} if m in sys.modules]))"
    run = subprocess.run(
        [sys.executable, "-c", code + tail], capture_output=True, text=True, check=True
    )
    heavy: list[str] = json.loads(run.stdout.splitlines()[-1])
    return heavy


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["record", "--help"],
        ["report", "--help"],
        ["check", "--help"],
        ["mmlu", "prepare", "--help"],
        ["ls", "models"],
    ],
    ids=" ".join,
)
def test_command_line_imports_nothing_heavy(arguments: list[str]) -> None:
    assert heavy_modules_after(HELP.format(arguments=arguments)) == []


def test_package_imports_nothing_heavy() -> None:
    assert heavy_modules_after("import moe_probe, moe_probe.models, moe_probe.errors") == []


USE = """
import numpy as np, pkgutil
from moe_probe import evaluation, hooks, recording
from moe_probe.cli import app
from moe_probe.trace import LayerSpec, TraceWriter
with TraceWriter({trace!r}, layers=[LayerSpec(layer=0, num_experts=8, top_k=2)]) as writer:
    for doc_id in range(4):
        ids = np.random.default_rng(doc_id).random((50, 8)).argsort(axis=1)[:, :2]
        writer.add([ids], subject="ab"[doc_id % 2], doc_id=doc_id)
for command in ("check", "report"):
    try:
        app([command, {trace!r}])
    except SystemExit as ended:
        assert not ended.code, command
for package in (evaluation, hooks, recording):
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        __import__(module.name)
"""


def test_nothing_that_runs_beside_vllm_loads_a_compiler(tmp_path: Path) -> None:
    """Of small traces, that is; vLLM's engine cannot start in a process that has numba."""
    pytest.importorskip("lm_eval")
    heavy = heavy_modules_after(USE.format(trace=str(tmp_path / "trace")))
    assert {"torch", "pandas"} <= set(heavy)
    assert not {"numba", "llvmlite"} & set(heavy)


def test_heavy_imports_would_be_seen() -> None:
    assert heavy_modules_after("import moe_probe.trace") == ["pyarrow", "numpy"]
