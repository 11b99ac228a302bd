"""What whole commands cost: each a process of its own, the files it reads in memory."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from benchmarks.support.child import peak_mib

_SCRIPT = str(Path(sys.executable).with_name("moe-probe"))
IMPORTS = "import numpy, pandas, pyarrow, matplotlib.pyplot"


class Cost(NamedTuple):
    """Seconds of a command and of the processes it started, and memory of the largest of them."""

    wall: float
    cpu: float
    peak_mib: float


def report_and_imports(rounds: int) -> tuple[list[Cost], list[Cost]]:
    """`moe-probe report` on the bundled example, and IMPORTS, in turn."""
    with tempfile.TemporaryDirectory() as folder:
        trace, output = str(Path(folder) / "trace"), str(Path(folder) / "report")
        record = ["record", "--model", "tiny-moe", "--task", "mmlu_sample", "--device", "cpu"]
        _run([_SCRIPT, *record, "--output", trace])
        commands = [[_SCRIPT, "report", trace, "-o", output], [sys.executable, "-c", IMPORTS]]
        costs = [[_run(command) for command in commands] for _ in range(rounds + 1)]
    report, imports = zip(*costs[1:], strict=True)
    return list(report), list(imports)


def report(trace: str) -> Cost:
    """`moe-probe report` of a trace, once."""
    with tempfile.TemporaryDirectory() as folder:
        return _run([_SCRIPT, "report", trace, "-o", str(Path(folder) / "report")])


def _run(command: list[str]) -> Cost:
    start = time.perf_counter()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            raise subprocess.CalledProcessError(process.returncode, command, stderr=said.read())
    return Cost(wall, usage.ru_utime + usage.ru_stime, peak_mib(usage))
