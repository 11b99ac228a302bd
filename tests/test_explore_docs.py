"""Every block of docs/explore.md runs; pandas, polars and SQL agree with each other and with us."""

from __future__ import annotations

import os
import shutil
import sys
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pytest

from moe_probe.analysis import Analysis, analyse
from moe_probe.trace import Trace, open_trace
from tests.analysis.exports import eplb
from tests.pages import ROOT, blocks, run, run_python

PAGE = ROOT / "docs" / "explore.md"
Rows = list[tuple[Any, ...]]


@dataclass
class Read:
    """What the page's program left behind."""

    trace: Trace
    found: Analysis
    results: dict[str, list[tuple[str, Rows]]] = field(default_factory=lambda: defaultdict(list))
    """By section: the language of every block that ends in a value, and that value."""
    names: dict[str, Any] = field(default_factory=dict)
    files: set[str] = field(default_factory=set)


@pytest.fixture(scope="module")
def read(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Read:
    folder = tmp_path_factory.mktemp("explore")
    shutil.copytree(demo, folder / "demo")
    before = os.listdir(folder)
    trace = open_trace(folder / "demo" / "trace")
    read = Read(trace, analyse(trace))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MPLBACKEND", "Agg")
        # It is no package: the same algorithm, written again.
        patch.setitem(sys.modules, "eplb", eplb)
        for block in blocks(PAGE):
            for command in block.commands:
                run(command)
            if block.language == "python":
                value = run_python(block, read.names)
            elif block.language == "sql":
                value = duckdb.sql(block.text)
            else:
                assert block.language == "shell", block
                continue
            if value is not None:
                read.results[block.section].append((block.language, rows_of(value)))
    read.files = {name for name in os.listdir(folder) if name not in before}
    return read


def rows_of(value: Any) -> Rows:
    """The rows of a table of any engine, its index included where it has a name."""
    if isinstance(value, pd.Series):
        value = value.reset_index()
    if isinstance(value, pd.DataFrame):
        if value.index.names != [None]:
            value = value.reset_index()
        return list(value.astype(object).itertuples(index=False, name=None))
    return list(value.rows() if isinstance(value, pl.DataFrame) else value.fetchall())


def routed(trace: Trace, layer: int) -> Rows:
    """Every stored token: sequence_id, position, token_id, experts."""
    return [
        (int(a), int(b), int(c), d.tolist())
        for block in trace.scan([layer])
        for a, b, c, d in zip(
            block.sequence_id_T,
            block.position_T,
            block.token_id_T,
            block.topk_ids(layer),
            strict=True,
        )
    ]


def recorded(read: Read) -> Rows:
    return [(spec.layer, spec.num_experts, spec.top_k) for spec in read.trace.layers.values()]


def least_used(read: Read) -> Rows:
    table = read.found.experts[["count", "layer", "expert"]]
    rows = sorted(table.itertuples(index=False, name=None))
    return [(layer, expert, count) for count, layer, expert in rows[:10]]


def shares(read: Read) -> Rows:
    counts_SN, _ = read.found.sums.by_group(1)
    found = [
        (-count / counts_N.sum(), subject, expert)
        for subject, counts_N in zip(read.found.sums.subjects, counts_SN, strict=True)
        for expert, count in enumerate(counts_N)
    ]
    return [(subject, expert, -share) for share, subject, expert in sorted(found)[:10]]


def by_area(read: Read) -> Rows:
    groups = defaultdict(list)
    for sequence in read.trace.sequences.to_pylist():
        groups[sequence["area"]].append(sequence)
    return [
        (
            area,
            len(group),
            sum(sequence["num_tokens"] for sequence in group),
            sum(sequence["correct"] for sequence in group) / len(group),
        )
        for area, group in sorted(groups.items())
    ]


def one_document(read: Read) -> Rows:
    wanted = {
        sequence["sequence_id"]: sequence["prefix_end"]
        for sequence in read.trace.sequences.to_pylist()
        if (sequence["subject"], sequence["doc_id"]) == ("anatomy", 0)
    }
    rows = [row for row in routed(read.trace, 1) if row[1] >= wanted.get(row[0], 1 << 30)]
    return [row[1:] for row in sorted(rows)]


def stored_ids(read: Read) -> Rows:
    return sorted(Counter(e for row in routed(read.trace, 1) for e in row[3]).items())


def uneven(read: Read) -> Rows:
    table = read.found.layers[["layer", "max_vio", "max_vio_null", "gini"]]
    return list(table.astype(object).itertuples(index=False, name=None))


def least_used_at_most(read: Read) -> Rows:
    columns = ["ci_high", "layer", "expert", "frequency", "tier"]
    rows = sorted(read.found.experts[columns].itertuples(index=False, name=None))[:10]
    return [(layer, expert, p, high, tier) for high, layer, expert, p, tier in rows]


def first_choices(read: Read) -> Rows:
    new_from = {row["sequence_id"]: row["new_from"] for row in read.trace.sequences.to_pylist()}
    counts: Counter[tuple[int, int]] = Counter()
    for layer in (1, 3, 4):
        for sequence_id, position, _, experts in routed(read.trace, layer):
            counts[layer, experts[0]] += 0 <= new_from[sequence_id] <= position
    return sorted((*key, count) for key, count in counts.items() if count)


EXPECTED: dict[str, Callable[[Read], Rows]] = {
    "What was recorded: run.json": recorded,
    "Which experts are used least: counts": least_used,
    "Which subjects load which experts: counts": shares,
    "Prompts, tokens and right answers: sequences": by_area,
    "The tokens of one document: routing": one_document,
    "Decode a whole routing column: routing": stored_ids,
    "How uneven are the layers: tables of a report": uneven,
    "Which experts are used least, uncertainty included: tables of a report": least_used_at_most,
    "Files for other tools: `moe-probe export`": first_choices,
}


@pytest.mark.parametrize("section", EXPECTED)
def test_three_engines_give_what_we_count(read: Read, section: str) -> None:
    expected = EXPECTED[section](read)
    assert len(expected) > 3
    results = read.results[section]
    assert [language for language, _ in results] == ["python", "python", "sql"]
    for _, rows in results:
        assert len(rows) == len(expected)
        for row, ours in zip(rows, expected, strict=True):
            assert list(row) == [
                pytest.approx(value, rel=1e-9) if isinstance(value, float) else value
                for value in ours
            ]


def test_every_recipe_is_compared(read: Read) -> None:
    assert set(read.results) == {*EXPECTED, "In a notebook"}


def test_exported_files_hold_what_the_page_says(read: Read) -> None:
    assert read.files == {
        "selections.parquet",
        "lists.parquet",
        "counts.csv",
        "load.pt",
        "load.npy",
    }
    raw = read.trace.counts.to_pandas().groupby(["layer", "expert"])["count"].sum()
    loads_LN = np.zeros((5, 32), np.int64)
    for (layer, expert), count in raw.items():
        loads_LN[layer, expert] = count
    assert read.names["steps"].shape == (1, 5, 32)
    assert read.names["loads"].tolist() == loads_LN.tolist()
    assert read.names["weight"].tolist() == loads_LN[1:].tolist()
    assert read.names["replicas"].sum(axis=1).tolist() == [40] * 4
    for placed_R, replicas_N in zip(read.names["placed"], read.names["replicas"], strict=True):
        assert np.bincount(placed_R, minlength=32).tolist() == replicas_N.tolist()


def test_notebook_shows_the_tables_and_the_ids(read: Read) -> None:
    pivot, ids = (rows for _, rows in read.results["In a notebook"])
    question = analyse(read.trace, rule="question").experts
    assert [row[0] for row in pivot] == list(read.trace.layers)
    assert [value for row in pivot for value in row[1:]] == question["relative_load"].tolist()
    assert ids == stored_ids(read)
