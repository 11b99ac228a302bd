"""A join that is killed: python join_child.py TRACE [KILL_AT].

KILL_AT names a step of the writer as in tests/trace/kill_child.py, or `unlink:N`: the N-th file
that is deleted is the process's last.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
from pathlib import Path
from typing import Any
from unittest import mock

from moe_probe.recording import stages
from tests.trace.kill_child import kill_at

# So few that a killed join has seen some of the requests only.
SEGMENT_TOKENS = 20


def kill_at_unlink(number: int) -> None:
    """Let the deletion of a file, the `number`-th of a stage or of the trace, be the last."""
    original, calls = Path.unlink, itertools.count(1)

    def unlink(self: Path, *arguments: Any, **options: Any) -> None:
        original(self, *arguments, **options)
        # What is deleted all the time does not count.
        if self.suffix not in (".tmp", ".lock") and next(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    Path.unlink = unlink  # type: ignore[method-assign]


def main() -> None:
    path, *steps = sys.argv[1:]
    for step in steps:
        what, _, number = step.partition(":")
        if what == "unlink":
            kill_at_unlink(int(number))
        else:
            kill_at(step)
    with mock.patch.object(stages, "SEGMENT_TOKENS", SEGMENT_TOKENS):
        stages.join_stages(path)


if __name__ == "__main__":
    main()
