"""How many documents each run answered correctly, and whether two runs differ in that."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from moe_probe.analysis.comparison.baseline import Baseline
from moe_probe.analysis.reading.index import subject_names
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
        subject  as `subject_names` has it; empty for all
        documents  that have an answer; null if not known
        accuracy  share answered correctly
        standard_error  over documents; null for fewer than two
        paired_documents  that the reference answered too
        difference  accuracy less that of the reference, each over all its documents
        difference_low, difference_high  95 % interval of it over documents, paired where both runs
            answered them; null where a run has fewer than two
        only_reference, only_other  paired documents that one run alone answered correctly
    """
    rows: list[dict[str, Any]] = []
    for label, each in zip(labels, answered, strict=True):
        if not each:
            continue
        groups = sorted({(task, subject, "") for task, subject, _ in each})
        named = sorted(zip(subject_names(groups), groups, strict=True))
        for name, group in (("", None), *named):
            rows.append(
                {"trace": label, "subject": name}
                | _row(_chosen(answered[0], group), _chosen(each, group))
            )
            if each is answered[0] and label == labels[0]:
                rows[-1] |= dict.fromkeys(COLUMNS[5:], None)
    if baseline is not None:
        rows += _baseline_rows(baseline)
    kinds = dict.fromkeys(("documents", "paired_documents", *COLUMNS[-2:]), "Int64")
    numbers = ("accuracy", "standard_error", "difference", "difference_low", "difference_high")
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    return table.astype({**kinds, **dict.fromkeys(numbers, "float64")})


def _chosen(
    answered: Mapping[Document, bool], group: tuple[str, str, str] | None
) -> dict[Document, bool]:
    return {
        document: correct
        for document, correct in answered.items()
        if group is None or document[:2] == group[:2]
    }


def _row(reference: Mapping[Document, bool], own: Mapping[Document, bool]) -> dict[str, Any]:
    common = reference.keys() & own.keys()
    row: dict[str, Any] = {
        "documents": len(own),
        "accuracy": _mean(own),
        "standard_error": _error(_influences(own)),
        "paired_documents": len(common),
    }
    if common:
        row["only_reference"] = sum(reference[each] and not own[each] for each in common)
        row["only_other"] = sum(own[each] and not reference[each] for each in common)
    if not reference:
        return row
    mine, first = _influences(own), _influences(reference)
    # What both runs answered alike is no noise of the difference.
    apart = {each: mine.get(each, 0.0) - first.get(each, 0.0) for each in {**mine, **first}}
    difference = row["accuracy"] - _mean(reference)
    half = _error(apart) * _student(min(len(own), len(reference)) - 1)
    return row | {
        "difference": difference,
        "difference_low": difference - half,
        "difference_high": difference + half,
    }


def _mean(answered: Mapping[Document, bool]) -> float:
    return sum(answered.values()) / len(answered)


def _influences(answered: Mapping[Document, bool]) -> dict[Document, float]:
    """What each document adds to the accuracy; the root of the sum of squares is its error."""
    number, mean = len(answered), _mean(answered)
    scale = math.sqrt(number / (number - 1)) / number if number > 1 else math.nan
    return {document: (correct - mean) * scale for document, correct in answered.items()}


def _error(influences: Mapping[Document, float]) -> float:
    return math.sqrt(math.fsum(value**2 for value in influences.values()))


def _student(freedom: int) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 0.975)) if freedom > 0 else math.nan


def _baseline_rows(baseline: Baseline) -> Iterator[dict[str, Any]]:
    whole = {"": (baseline.accuracy, baseline.documents)}
    for name, (accuracy, documents) in (whole | dict(baseline.subjects)).items():
        row = {"trace": BASELINE, "subject": name, "documents": documents, "accuracy": accuracy}
        if documents is not None and documents > 1:
            error = math.sqrt(accuracy * (1 - accuracy) / (documents - 1))
            row["standard_error"] = error
        yield row
