"""A recording that is killed: python kill_child.py WHAT TRACE SIDE_FILE [KILL_AT].

WHAT is `record` (for ever, resuming what is there), `limited` (the same with MAX_BYTES of rows),
`finish` (forty sequences, then close) or `open`. Every id is appended to SIDE_FILE once `write` has
returned. KILL_AT names a step of the writer at which the process kills itself.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np

from moe_probe.trace import TraceWriter, open_trace, parts, settling
from moe_probe.trace.schema import Sequence
from tests.trace.recordings import LAYERS, Prompt, random_ids, write

SEGMENT_TOKENS = 60
MAX_BYTES = 8000


def prompt(number: int) -> Prompt:
    """What sequence `number` is, whoever asks; it may share tokens with the one before."""
    rng = np.random.default_rng(number)
    tokens, shared = int(rng.integers(8, 16)), 0
    ids = [random_ids(rng, spec, tokens) for spec in LAYERS]
    if number % 3:
        shared = int(rng.integers(1, 8))
        for mine, others in zip(ids, prompt(number - 1).ids, strict=True):
            mine[:shared] = others[:shared]
    sequence = Sequence(
        sequence_id=number,
        num_tokens=tokens,
        task="t",
        subject="s",
        choices=[0],
        prefix_id=number - 1 if shared else -1,
        prefix_tokens=shared,
        new_from=shared,
        multiplicity=1 + number % 2,
    )
    return Prompt(sequence, ids, [np.zeros(ids_TK.shape, np.float16) for ids_TK in ids])


def record(path: Path, side: Path, count: int | None, max_bytes: int | None) -> None:
    written = os.open(side, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    resume = (path / "run.json").exists()
    writer = TraceWriter(
        path,
        layers=LAYERS,
        resume=resume,
        segment_tokens=SEGMENT_TOKENS,
        max_bytes=max_bytes,
    )
    for _ in itertools.count() if count is None else range(count):
        number = writer.next_sequence_id()
        write(writer, prompt(number), share=writer.keeps_rows)
        writer.answer(number, 0, loglik=-float(number), is_greedy=True)
        os.write(written, b"%d\n" % number)
    writer.close()


def kill_at(step: str) -> None:
    """Let the second call of a step of the writer be the process's last."""
    function, when, name = step.split(":")
    module: Any = {"write_table": parts, "settle_table": settling, "replace": os}[function]
    attribute = function.replace("settle", "write")
    original, calls = getattr(module, attribute), itertools.count()

    def replacement(*arguments: Any, **options: Any) -> None:
        is_last = any(name in str(a) for a in arguments) and next(calls) == 1
        if is_last and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        original(*arguments, **options)
        if is_last:
            os.kill(os.getpid(), signal.SIGKILL)

    setattr(module, attribute, replacement)


def main() -> None:
    what, path, side, *steps = sys.argv[1:]
    for step in steps:
        kill_at(step)
    if what == "open":
        open_trace(path)
    else:
        limit = MAX_BYTES if what == "limited" else None
        record(Path(path), Path(side), 40 if what == "finish" else None, limit)


if __name__ == "__main__":
    main()
