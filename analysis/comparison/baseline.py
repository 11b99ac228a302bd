"""Accuracy of a dense model, to be shown beside that of the traces."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from moe_probe.errors import UsageError
from moe_probe.trace import Trace

_METRICS = ("acc", "exact_match")


@dataclass(frozen=True)
class Baseline:
    """Accuracy of a model for which there is no trace."""

    accuracy: float
    documents: int | None = None
    """None where it is not known of how many."""
    subjects: Mapping[str, tuple[float, int | None]] = field(default_factory=dict)
    """Accuracy and documents by subject."""


def read_baseline(text: str, subjects: Mapping[str, str]) -> Baseline:
    """Take a baseline from a number, or from the results of lm-eval.

    Args:
        text: A share of documents from 0 to 1; or the path of a results file, or of a folder that
            `moe-probe record --baseline` wrote.
        subjects: Tasks that the traces ran, and the subject of each: only these count.

    Raises:
        UsageError: it is none of these, or has no accuracy of the tasks.
    """
    try:
        value = float(text)
    except ValueError:
        return _from_results(Path(text), subjects)
    if not 0 <= value <= 1:
        raise UsageError(f"--baseline-accuracy is {text}. Give a share of documents, from 0 to 1.")
    return Baseline(value)


def subjects_of(traces: Iterable[Trace]) -> dict[str, str]:
    """Return the tasks of some traces, and the one subject of each, or its own name."""
    known: dict[str, set[str]] = {}
    for trace in traces:
        columns = (trace.sequences[name].to_pylist() for name in ("task", "subject"))
        for task, subject in set(zip(*columns, strict=True)):
            known.setdefault(task, set()).add(subject or task)
    return {task: next(iter(all_)) if len(all_) == 1 else task for task, all_ in known.items()}


def _from_results(path: Path, subjects: Mapping[str, str]) -> Baseline:
    try:
        file = path / "run.json" if path.is_dir() else path
        content = json.loads(file.read_text("utf-8"))
        found = {
            subject: (accuracy, _documents(content, task))
            for task, subject in subjects.items()
            if (accuracy := _accuracy(content["results"].get(task, {}))) is not None
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"--baseline-accuracy {path} is neither a number nor results of lm-eval. Give a number "
            "from 0 to 1, the results_*.json of an evaluation, or what record --baseline wrote."
        ) from error
    if not found:
        raise UsageError(
            f"{path} has no accuracy of {', '.join([*subjects][:3]) or 'any task'}, which the "
            "traces ran. Evaluate the dense model on the same tasks."
        )
    values, numbers = zip(*found.values(), strict=True)
    known = [number for number in numbers if number is not None]
    is_known = len(known) == len(found)
    mean = float(np.average(values, weights=known if is_known else None))
    return Baseline(mean, sum(known) if is_known else None, found)


def _accuracy(scores: Mapping[str, Any]) -> float | None:
    for metric in _METRICS:
        for name, value in scores.items():
            if name.split(",")[0] == metric and isinstance(value, int | float):
                return float(value) if 0 <= value <= 1 else None
    return None


def _documents(content: Mapping[str, Any], task: str) -> int | None:
    number = content.get("n-samples", {}).get(task, {}).get("effective")
    if number is None:
        number = content["results"][task].get("sample_len")
    return number if isinstance(number, int) and number > 0 else None
