"""How many documents each run answered correctly, and whether two runs differ in that.

Shape suffixes: D documents.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from moe_probe.analysis.comparison.baseline import Baseline
from moe_probe.trace import Trace

Document = tuple[str, str, int]
"""Task, subject, number in the task."""
BASELINE = "baseline"
"""What the dense model is called among the traces."""
COLUMNS = (
    *("trace", "subject", "documents", "accuracy", "standard_error", "paired_documents"),
    *("difference", "difference_low", "difference_high", "only_reference", "only_other"),
)


def answers(trace: Trace) -> dict[Document, bool]:
    """Return whether each document was answered correctly, of those where the task's metric says.

    A document whose sequences disagree, or that has no number, is left out.
    """
    names = ("task", "subject", "doc_id", "correct")
    found: dict[Document, bool] = {}
    unclear: set[Document] = set()
    columns = (trace.sequences[name].to_pylist() for name in names)
    for task, subject, number, correct in zip(*columns, strict=True):
        if number >= 0 and correct is not None:
            document = (task, subject, number)
            if found.setdefault(document, correct) is not correct:
                unclear.add(document)
    return {document: value for document, value in found.items() if document not in unclear}


def accuracy_table(
    labels: Sequence[str],
    answered: Sequence[Mapping[Document, bool]],
    baseline: Baseline | None = None,
) -> pd.DataFrame:
    """Tabulate the accuracy of every run, first over all documents and then by subject.

    Returns:
        trace  its label; `baseline` for the dense model
        subject  subject, or task where it has none; empty for all
        documents  that have an answer; null if not known
        accuracy  share answered correctly
        standard_error  over documents; null for fewer than two
        paired_documents  that the reference answered too
        difference  accuracy less that of the reference: over those documents, or over all if
            there are none
        difference_low, difference_high  95 % interval of it, from Student's t
        only_reference, only_other  paired documents that one run alone answered correctly
    """
    rows: list[dict[str, Any]] = []
    for label, each in zip(labels, answered, strict=True):
        if not each:
            continue
        names = sorted({subject or task for task, subject, _ in each})
        for name in ("", *names):
            rows.append(
                {"trace": label, "subject": name}
                | _row(_chosen(answered[0], name), _chosen(each, name))
            )
            if each is answered[0] and label == labels[0]:
                rows[-1] |= dict.fromkeys(COLUMNS[5:], None)
    if baseline is not None:
        rows += _baseline_rows(baseline)
    kinds = dict.fromkeys(("documents", "paired_documents", *COLUMNS[-2:]), "Int64")
    numbers = ("accuracy", "standard_error", "difference", "difference_low", "difference_high")
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    return table.astype({**kinds, **dict.fromkeys(numbers, "float64")})


def _chosen(answered: Mapping[Document, bool], name: str) -> dict[Document, bool]:
    return {
        document: correct
        for document, correct in answered.items()
        if not name or name == (document[1] or document[0])
    }


def _row(reference: Mapping[Document, bool], own: Mapping[Document, bool]) -> dict[str, Any]:
    own_D = np.array([*own.values()], np.float64)
    common = [document for document in own if document in reference]
    row = {
        "documents": len(own),
        "accuracy": float(own_D.mean()),
        "standard_error": math.sqrt(_variance(own_D)),
        "paired_documents": len(common),
    }
    if common:
        other_D = np.array([own[document] for document in common], np.float64)
        first_D = np.array([reference[document] for document in common], np.float64)
        difference = float((other_D - first_D).mean())
        variance, freedom = _variance(other_D - first_D), len(common) - 1
        row["only_reference"] = int((first_D > other_D).sum())
        row["only_other"] = int((other_D > first_D).sum())
    elif reference:
        first_D = np.array([*reference.values()], np.float64)
        difference = float(own_D.mean() - first_D.mean())
        variance = _variance(own_D) + _variance(first_D)
        freedom = min(len(own_D), len(first_D)) - 1
    else:
        return row
    low, high = _interval(difference, variance, freedom)
    return row | {"difference": difference, "difference_low": low, "difference_high": high}


def _variance(values_D: np.ndarray) -> float:
    """Of the mean; NaN for fewer than two."""
    number = len(values_D)
    return float(values_D.var(ddof=1)) / number if number > 1 else math.nan


def _interval(value: float, variance: float, freedom: int) -> tuple[float, float]:
    from scipy.special import stdtrit

    if not variance >= 0:
        return math.nan, math.nan
    half = float(stdtrit(freedom, 0.975)) * math.sqrt(variance)
    return value - half, value + half


def _baseline_rows(baseline: Baseline) -> Iterator[dict[str, Any]]:
    whole = {"": (baseline.accuracy, baseline.documents)}
    for name, (accuracy, documents) in (whole | dict(baseline.subjects)).items():
        row = {"trace": BASELINE, "subject": name, "documents": documents, "accuracy": accuracy}
        if documents is not None and documents > 1:
            error = math.sqrt(accuracy * (1 - accuracy) / (documents - 1))
            row["standard_error"] = error
        yield row
