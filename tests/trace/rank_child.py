"""One rank of a group: python rank_child.py TRACE SIDE_FILE RANK COUNT [KILL_AT].

It writes COUNT sequences, or slowly for ever if that is negative, and closes. Every id is appended
to SIDE_FILE once `write` and `answer` have returned. KILL_AT names a step as in kill_child.
"""

from __future__ import annotations

import itertools
import os
import sys
import time
from typing import Any

from moe_probe.trace import TraceWriter
from tests.trace import kill_child
from tests.trace.recordings import LAYERS, Prompt, write

PER_RANK = 1 << 40


def prompt(sequence_id: int) -> Prompt:
    """What a sequence of any rank is, whoever asks."""
    rank, number = divmod(sequence_id, PER_RANK)
    known = kill_child.prompt(number)
    sequence = known.sequence
    sequence.sequence_id, sequence.rank, sequence.subject = sequence_id, rank, f"rank {rank}"
    if sequence.prefix_id >= 0:
        sequence.prefix_id += rank * PER_RANK
    return known


def total(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """What the last rank makes of the facts of all."""
    return {"written": sum(entry["written"] for entry in entries)}


def main() -> None:
    path, side, rank, count, *steps = sys.argv[1:]
    for step in steps:
        kill_child.kill_at(step)
    written = os.open(side, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    options: dict[str, Any] = {"segment_tokens": kill_child.SEGMENT_TOKENS, "run": {"model": "m"}}
    writer = TraceWriter(path, layers=LAYERS, rank=int(rank), group="g", force=True, **options)
    for _ in itertools.count() if int(count) < 0 else range(int(count)):
        number = writer.next_sequence_id()
        write(writer, prompt(number))
        writer.answer(number, 0, loglik=-float(number), is_greedy=True)
        os.write(written, b"%d\n" % number)
        if int(count) < 0:
            time.sleep(0.01)
    writer.close(facts={"written": int(count)}, merge=total)


if __name__ == "__main__":
    main()
