"""What a check says, and how it reads what run.json says."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from moe_probe.errors import TraceError
from moe_probe.trace import LayerSpec, Trace

NO_ROWS = "no per-token rows (--capture counts)"


class Status(StrEnum):
    """How a check ended."""

    PASS = "pass"
    FAIL = "fail"
    NOTE = "note"
    """Worth knowing, neither right nor wrong."""
    SKIP = "skip"
    """The trace lacks what the check needs; its reason says what."""


@dataclass(frozen=True)
class Check:
    """The outcome of one check."""

    check: str
    """Its id."""
    name: str
    """What it looks at."""
    status: Status
    value: str = ""
    expected: str = ""
    reason: str = ""
    """Why it was skipped."""


def fact(trace: Trace, name: str) -> int | None:
    facts = table(trace.run, "model_facts")
    return None if facts.get(name) is None else integers(facts, name)[0]


def listed(trace: Trace, name: str) -> list[int] | None:
    """Return a fact of the model that is a list of whole numbers; None where nothing says it."""
    found = table(trace.run, "model_facts").get(name)
    if found is None:
        return None
    if not isinstance(found, list) or not all(isinstance(value, int) for value in found):
        raise TraceError(f"{name} in run.json is {found!r}, not a list of numbers. Record again.")
    return found


def table(facts: dict[str, Any], name: str) -> dict[str, Any]:
    table = facts.get(name) or {}
    if not isinstance(table, dict):
        raise TraceError(f"{name} in run.json is {table!r}, not a table. Record again.")
    return table


def integers(table: dict[str, Any], names: str) -> list[int]:
    try:
        return [int(table[name]) for name in names.split()]
    except (KeyError, TypeError, ValueError) as error:
        raise TraceError(f"A table in run.json lacks {names}: {error!r}. Record again.") from error


def groups_of(spec: LayerSpec) -> int:
    """Return the groups of experts that a layer's router chooses first; 1 where nothing says so."""
    groups = spec.facts.get("num_groups")
    is_known = isinstance(groups, int) and groups > 0 and spec.num_experts % groups == 0
    return int(groups or 1) if is_known else 1


def pass_if(condition: bool) -> Status:
    return Status.PASS if condition else Status.FAIL


def some(texts: list[str]) -> str:
    """Name the first three."""
    more = f" and {len(texts) - 3} more" if len(texts) > 3 else ""
    return "; ".join(texts[:3]) + more
