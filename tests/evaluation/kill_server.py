"""Runs recordings in forked children that die by SIGKILL; run as a program by test_resume.py.

One process imports the heavy libraries, and its children record. It never computes anything itself,
so that forking it is safe.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

from moe_probe.trace import open_trace
from moe_probe.trace.writer import TraceWriter
from tests.evaluation.record_helpers import record


def main(arguments: dict[str, Any]) -> None:
    """Kill a recording, resume it, kill it again, and at last let it finish."""
    output, witness = Path(arguments["output"]), Path(arguments["witness"])
    chance = random.Random(arguments["seed"])
    lost: list[int] = []
    kills = 0
    while True:
        accepted = _accepted(witness)
        child = os.fork()
        if child == 0:
            _record(arguments, resume=output.exists())
        delay = chance.uniform(0.0, arguments["max_delay"]) if kills < arguments["kills"] else None
        if not _kill_after_start(child, witness, len(accepted), delay):
            break
        kills += 1
        if (output / "run.json").exists():
            trace = open_trace(output)
            recorded = set(trace.sequences["sequence_id"].to_pylist())
            lost += sorted(set(_accepted(witness)) - recorded)
            assert trace.run["status"] == "killed", trace.run["status"]
    print(json.dumps({"kills": kills, "lost": lost, "sequences": len(_accepted(witness))}))


def _record(arguments: dict[str, Any], *, resume: bool) -> None:
    log = os.open(arguments["witness"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    write = TraceWriter.write

    def witnessed(self: TraceWriter, sequence: Any, *args: Any, **kwargs: Any) -> None:
        write(self, sequence, *args, **kwargs)
        os.write(log, f"{sequence.sequence_id}\n".encode())
        # Slow enough that a kill falls between the rows and not after them.
        time.sleep(arguments["pause"])

    TraceWriter.write = witnessed  # type: ignore[method-assign]
    record(
        arguments["model"],
        arguments["tasks"],
        Path(arguments["output"]),
        include_path=Path(arguments["include_path"]),
        num_fewshot=2,
        resume=resume,
    )
    os._exit(0)


def _kill_after_start(child: int, witness: Path, before: int, delay: float | None) -> bool:
    """Wait until the child has written its next row, then `delay` seconds, then kill it.

    Returns False if it finished by itself.
    """
    deadline = None
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            assert os.waitstatus_to_exitcode(status) == 0, "the recording failed by itself"
            return False
        if deadline is None and delay is not None and len(_accepted(witness)) > before:
            deadline = time.monotonic() + delay
        if deadline is not None and time.monotonic() >= deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return True
        time.sleep(0.005)


def _accepted(witness: Path) -> list[int]:
    text = witness.read_text() if witness.exists() else ""
    return [int(line) for line in text.split()]


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
