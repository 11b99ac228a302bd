"""Accuracy of runs and of a dense model, against counting by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_rel

from moe_probe.analysis.comparison.accuracy import accuracy_table, answers
from moe_probe.analysis.comparison.baseline import Baseline, read_baseline, subjects_of
from moe_probe.errors import UsageError
from moe_probe.trace import LayerSpec, TraceWriter, open_trace

FIRST = {("t", "a", 0): True, ("t", "a", 1): False, ("u", "", 0): True, ("u", "", 1): True}
SECOND = {("t", "a", 0): False, ("t", "a", 1): False, ("u", "", 1): True, ("v", "c", 5): True}


def row_of(table: pd.DataFrame, trace: str, subject: str) -> Any:
    return table[(table["trace"] == trace) & (table["subject"] == subject)].iloc[0]


def test_all_and_by_subject() -> None:
    table = accuracy_table(["one", "two"], [FIRST, SECOND])
    assert table[["trace", "subject", "documents", "accuracy"]].to_numpy().tolist() == [
        ["one", "", 4, 0.75],
        ["one", "a", 2, 0.5],
        ["one", "u", 2, 1.0],
        ["two", "", 4, 0.5],
        ["two", "a", 2, 0.0],
        ["two", "c", 1, 1.0],
        ["two", "u", 1, 1.0],
    ]
    assert table["difference"].isna().tolist()[:3] == [True] * 3
    whole = row_of(table, "two", "")
    assert whole["standard_error"] == pytest.approx(math.sqrt(0.25 / 3))
    # Three documents are common: the reference has two of them right, the other one.
    assert (whole["paired_documents"], whole["only_reference"], whole["only_other"]) == (3, 1, 0)
    assert whole["difference"] == -0.25
    root = math.sqrt(4 / 3) / 4
    apart = [
        root * ((SECOND[each] - 0.5 if each in SECOND else 0) - (FIRST.get(each, 0.75) - 0.75))
        for each in {*FIRST, *SECOND}
    ]
    half = 3.182446 * math.sqrt(sum(value**2 for value in apart))  # Student's, of four documents
    assert whole["difference_low"] == pytest.approx(-0.25 - half)
    assert whole["difference_high"] == pytest.approx(-0.25 + half)
    assert np.isnan(row_of(table, "two", "c")["difference"])  # no subject of the reference
    assert np.isnan(row_of(table, "two", "u")["difference_low"])


def test_subjects_of_one_name_are_told_apart_by_their_task() -> None:
    run = {("t", "law", 0): True, ("u", "law", 0): False, ("", "", 0): False}
    table = accuracy_table(["one"], [run])
    assert table[["subject", "documents", "accuracy"]].to_numpy().tolist() == [
        ["", 3, 1 / 3],
        ["/", 1, 0.0],
        ["t/law", 1, 1.0],
        ["u/law", 1, 0.0],
    ]


def test_the_same_documents_are_paired() -> None:
    rng = np.random.default_rng(0)
    values = rng.random((2, 30)) < 0.6
    runs = [{("t", "a", n): bool(v) for n, v in enumerate(row)} for row in values]
    row = row_of(accuracy_table(["one", "two"], runs), "two", "")
    test = ttest_rel(values[1].astype(int), values[0].astype(int))
    interval = test.confidence_interval(0.95)
    assert row["difference_low"] == pytest.approx(interval.low)
    assert row["difference_high"] == pytest.approx(interval.high)


def test_runs_of_other_documents_are_independent() -> None:
    other = {("w", "", number): number % 3 == 0 for number in range(6)}
    row = row_of(accuracy_table(["one", "two"], [FIRST, other]), "two", "")
    assert (row["paired_documents"], row["difference"]) == (0, pytest.approx(1 / 3 - 0.75))
    error = math.sqrt(0.75 * 0.25 / 3 + 2 / 9 / 5)
    half = (row["difference_high"] - row["difference_low"]) / 2
    assert half == pytest.approx(3.182446 * error)  # of four documents
    assert pd.isna(row["only_other"])


def test_runs_without_answers_have_no_rows() -> None:
    assert accuracy_table(["one", "two"], [{}, {}]).empty
    table = accuracy_table(["one", "two"], [{}, FIRST])
    assert table["trace"].unique().tolist() == ["two"]
    assert table["difference"].isna().all()


def test_answers_of_a_trace(tmp_path: Path) -> None:
    layers = [LayerSpec(layer=0, num_experts=4, top_k=1)]
    with TraceWriter(tmp_path / "t", layers=layers) as writer:
        for document in (0, 0, 1, 2, -1):
            writer.add([np.zeros((2, 1), int)], task="t", subject="a", doc_id=document)
        writer.close("complete", correct={("t", 0): True, ("t", 1): False})
    trace = open_trace(tmp_path / "t")
    assert answers(trace) == {("t", "a", 0): True, ("t", "a", 1): False}
    assert subjects_of([trace]) == {"t": "a"}


def test_a_baseline_that_is_a_number() -> None:
    table = accuracy_table(["one"], [FIRST], read_baseline("0.5", {}))
    row = table.iloc[-1]
    assert (row["trace"], row["subject"], row["accuracy"]) == ("baseline", "", 0.5)
    assert pd.isna(row["documents"])
    for text in ("1.5", "-0.1", "nan"):
        with pytest.raises(UsageError, match="from 0 to 1"):
            read_baseline(text, {})


def test_a_baseline_of_lm_eval(tmp_path: Path) -> None:
    results = {
        "mmlu": {"acc,none": 0.9, "alias": "mmlu"},
        "t": {"alias": "t", "acc,none": 0.25, "acc_stderr,none": 0.1, "acc_norm,none": 0.7},
        "u": {"exact_match,strict": 1.0, "sample_len": 12},
        "w": {"perplexity,none": 3.0},
    }
    content = {"results": results, "n-samples": {"t": {"original": 9, "effective": 4}}}
    path = tmp_path / "results.json"
    path.write_text(json.dumps(content))
    subjects = {"t": "a", "u": "u", "w": "w", "absent": "absent"}
    found = read_baseline(str(path), subjects)
    assert found == Baseline(13 / 16, 16, {"a": (0.25, 4), "u": (1.0, 12)})
    table = accuracy_table(["one"], [FIRST], found)
    row = row_of(table, "baseline", "a")
    assert row["standard_error"] == pytest.approx(math.sqrt(0.25 * 0.75 / 3))
    del content["n-samples"]
    path.write_text(json.dumps(content))
    assert read_baseline(str(path), subjects) == Baseline(
        0.625, None, {"a": (0.25, None), "u": (1.0, 12)}
    )


@pytest.mark.parametrize("content", [None, "no json", "[]", '{"results": 3}', '{"a": {}}'])
def test_what_is_no_baseline(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "file"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UsageError, match="neither a number nor results of lm-eval"):
        read_baseline(str(path), {"t": "a"})


def test_a_baseline_of_other_tasks(tmp_path: Path) -> None:
    (tmp_path / "file").write_text('{"results": {"t": {"acc,none": 0.5}}}')
    with pytest.raises(UsageError, match="has no accuracy of u, which the traces ran"):
        read_baseline(str(tmp_path / "file"), {"u": "a"})
