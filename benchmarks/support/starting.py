"""How long commands take from a cold start: no process, warm files."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_SCRIPT = str(Path(sys.executable).with_name("moe-probe"))
IMPORTS = "import numpy, pandas, pyarrow, matplotlib.pyplot"


def report_and_imports(rounds: int) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """(wall, CPU) seconds of `moe-probe report` on the bundled example, and of IMPORTS, in turn."""
    with tempfile.TemporaryDirectory() as folder:
        trace, output = str(Path(folder) / "trace"), str(Path(folder) / "report")
        record = ["record", "--model", "tiny-moe", "--task", "mmlu_sample", "--device", "cpu"]
        _run([_SCRIPT, *record, "--output", trace])
        commands = [[_SCRIPT, "report", trace, "-o", output], [sys.executable, "-c", IMPORTS]]
        times = [[_run(command) for command in commands] for _ in range(rounds + 1)]
    report, imports = zip(*times[1:], strict=True)
    return list(report), list(imports)


def _run(command: list[str]) -> tuple[float, float]:
    before, wall = os.times(), time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    wall, after = time.perf_counter() - wall, os.times()
    cpu = after.children_user + after.children_system
    return wall, cpu - before.children_user - before.children_system
