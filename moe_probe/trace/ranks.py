"""What run.json says of the ranks of a group: how each ended, and with which facts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from moe_probe.trace.settling import Correct

Facts = dict[str, Any]
Merge = Callable[[list[Facts]], Facts]
# From best to worst.
STATUSES = ("complete", "incomplete", "interrupted", "failed", "killed")


def ranks_of(run: Mapping[str, Any]) -> dict[int, Facts]:
    """The entries of all ranks, by rank; none where run.json has none or says nonsense."""
    table = run.get("ranks")
    items = table.items() if isinstance(table, dict) else ()
    known = {int(k): v for k, v in items if k.isascii() and k.isdigit() and isinstance(v, dict)}
    return dict(sorted(known.items()))


def note_work(run: Facts, rank: int) -> None:
    """Note that a rank is at work."""
    run.setdefault("ranks", {})[str(rank)] = {"status": "running"}


def note_end(run: Facts, rank: int, status: str, facts: Facts, correct: Correct) -> None:
    """Note how a rank ended; what it knows of answers waits there for the last one."""
    entry = {**facts, "status": status}
    if correct:
        entry["correct"] = [[*key, value] for key, value in correct.items()]
    run.setdefault("ranks", {})[str(rank)] = entry


def note_deaths(run: Facts) -> None:
    """Note that whoever was at work did not come to an end; nobody holds a lock any more."""
    for entry in ranks_of(run).values():
        if entry.get("status") == "running":
            entry["status"] = "killed"


def take_correct(run: Facts) -> dict[tuple[str, int], bool]:
    """Take what the ranks left about answers out of their entries."""
    found: dict[tuple[str, int], bool] = {}
    for entry in ranks_of(run).values():
        for task, doc_id, value in entry.pop("correct", ()):
            found[task, doc_id] = value
    return found


def merge_ranks(run: Facts, merge: Merge | None) -> None:
    """Make the trace's own facts and its status of those of its ranks."""
    entries = list(ranks_of(run).values())
    ended = [entry for entry in entries if entry["status"] != "killed"]
    if merge is not None:
        run.update(merge(ended))
    totals: Counter[str] = Counter()
    for entry in ended:
        totals.update(entry["writer"])
    run["writer"] = dict(totals)
    run["status"] = max((entry["status"] for entry in entries), key=STATUSES.index)
