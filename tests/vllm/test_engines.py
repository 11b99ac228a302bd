"""A call in a new process brings its result back, and leaves nothing running."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.vllm.engines import call_in_new_process


def report(numbers: list[int]) -> dict[str, object]:
    print("what a process says is not its answer")
    return {"sum": sum(numbers), "pid": os.getpid(), "variable": os.environ["A_VARIABLE"]}


def fail() -> None:
    raise RuntimeError("out of experts")


def leave_a_child(note: str, seconds: float) -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    Path(note).write_text(str(child.pid))
    time.sleep(seconds)


def test_result_and_environment() -> None:
    answer = call_in_new_process(report, [1, 2], environment={"A_VARIABLE": "set"})
    assert answer == {"sum": 3, "pid": answer["pid"], "variable": "set"}
    assert answer["pid"] != os.getpid()
    assert "A_VARIABLE" not in os.environ


def test_failure_shows_what_the_process_said() -> None:
    with pytest.raises(AssertionError, match=r"exit status 1\n(.|\n)*out of experts"):
        call_in_new_process(fail)


@pytest.mark.parametrize(("seconds", "timeout"), [(0.0, 60.0), (60.0, 8.0)])
def test_no_child_outlives_the_call(tmp_path: Path, seconds: float, timeout: float) -> None:
    note = tmp_path / "child"
    if seconds > timeout:
        with pytest.raises(AssertionError, match="exit status None"):
            call_in_new_process(leave_a_child, str(note), seconds, timeout=timeout)
    else:
        call_in_new_process(leave_a_child, str(note), seconds, timeout=timeout)
    status = Path(f"/proc/{note.read_text()}/stat")
    for _ in range(50):
        # A killed child whose parent is gone may wait for its new parent to collect it.
        if not status.exists() or status.read_text().split()[2] == "Z":
            return
        time.sleep(0.1)
    pytest.fail("the child is still running")
