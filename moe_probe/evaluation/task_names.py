"""What names of lm-eval tasks and groups stand for, by lm-eval's index; nothing is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lm_eval.tasks._index import Entry


@dataclass(frozen=True, kw_only=True)
class TaskFacts:
    """What a leaf task is about."""

    task: str
    """lm-eval's name of the task."""
    subject: str
    """The MMLU subject; the task's name for any other task."""
    area: str
    """The group of MMLU subjects (stem, humanities, social sciences, other), else empty."""


def leaves_of(name: str, index: Mapping[str, Entry]) -> Iterator[str]:
    """Expand a name into leaf tasks, as lm-eval's task factory does but without building them."""
    entry = index[name]
    match entry.kind.name:
        case "GROUP":
            yield from _members(name, entry.cfg.get("task"), index)
        case "TAG":
            yield from (task for task in sorted(entry.tags) if task in index)
        case _:
            yield name


def _members(group: str, items: object, index: Mapping[str, Entry]) -> Iterator[str]:
    for item in items if isinstance(items, list) else []:
        if isinstance(item, dict) and "group" in item:
            if item["group"] in index:
                yield from leaves_of(item["group"], index)
            else:
                yield from _members(f"{group}::{item['group']}", item.get("task"), index)
            continue
        name = str(item["task"]) if isinstance(item, dict) and "task" in item else str(item)
        if name in index:
            yield from leaves_of(name, index)
        else:
            yield f"{group}::{name}"


def facts_of(leaf: str, index: Mapping[str, Entry], areas: Mapping[str, str]) -> TaskFacts:
    """Return what a leaf task is about; `areas` has the area of every MMLU subject."""
    config: dict[str, Any] = (index[leaf].cfg if leaf in index else None) or {}
    subject = config.get("dataset_name")
    # Also variants such as mmlu_anatomy_generative, and subjects that only an offline copy has.
    if leaf == f"mmlu_{subject}" or (leaf.startswith("mmlu_") and subject in areas):
        return TaskFacts(task=leaf, subject=str(subject), area=areas.get(str(subject), ""))
    return TaskFacts(task=leaf, subject=leaf, area="")
