from __future__ import annotations

import json
import subprocess
import sys

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


def test_heavy_imports_would_be_seen() -> None:
    assert heavy_modules_after("import moe_probe.trace") == ["pyarrow", "numpy"]
