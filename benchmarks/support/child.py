"""Run a function in a process of its own: nothing is warm, and the memory is its own.

    in_child("benchmarks.support.limits:measure", rounds=5)

Arguments and results are JSON. Import nothing large here: the process that asks should stay small,
since Linux may count its memory as the child's.
"""

from __future__ import annotations

import importlib
import json
import resource
import subprocess
import sys
from typing import Any, NamedTuple


class Outcome(NamedTuple):
    """What a function in a child returned, and the most memory the child ever had."""

    value: Any
    peak_mib: float


def in_child(target: str, **arguments: Any) -> Outcome:
    """Call `module:function` in a fresh process; raises CalledProcessError where that fails."""
    command = [sys.executable, "-m", "benchmarks.support.child", target, json.dumps(arguments)]
    text = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return Outcome(*json.loads(text.splitlines()[-1]))


def peak_mib(usage: resource.struct_rusage) -> float:
    """The most memory that the processes of a usage had, the largest of them alone."""
    # Kibibytes, but bytes on macOS.
    return usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def main() -> None:
    module, _, name = sys.argv[1].partition(":")
    value = getattr(importlib.import_module(module), name)(**json.loads(sys.argv[2]))
    print(json.dumps([value, peak_mib(resource.getrusage(resource.RUSAGE_SELF))]))


if __name__ == "__main__":
    main()
