"""The report's tables: their columns, and values of a trace written and read back."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from moe_probe.analysis import Rule, analyse
from moe_probe.analysis.results import TABLES
from moe_probe.analysis.tables.files import to_records, write_table
from moe_probe.trace import LayerSpec, TraceWriter

LAYER_COLUMNS = (
    "layer num_experts top_k tokens assignments max_vio max_vio_null max_vio_noise cv cv_null "
    "cv_noise gini gini_null gini_noise entropy entropy_null entropy_noise effective_experts "
    "effective_experts_null effective_experts_noise kl_uniform kl_uniform_null kl_uniform_noise "
    "total_variation total_variation_null total_variation_noise unseen unseen_null unseen_noise"
)
COLUMNS = {
    "experts": "layer expert count frequency relative_load ci_low ci_high tier longest_idle "
    "current_idle leading_idle rate_deficit burstiness",
    "layers": LAYER_COLUMNS,
    "idle_windows": "layer expert window runs share expected_runs",
    "subjects": "layer expert subject count frequency lift log_odds z q_value",
    "specialization": "layer mutual_information_bits null null_95 p_value mean_subject_kl "
    "pooled_kl",
    "quality": "check name status value expected reason",
}
"""The first columns of the tables that others build on."""

quick = partial(analyse, shuffles=2, replicates=4, permutations=4)


def test_columns_are_frozen(run: Any) -> None:
    found = quick(run.trace)
    for name, columns in COLUMNS.items():
        expected = columns.split()
        assert list(found.table(name))[: len(expected)] == expected
    for name in TABLES:
        assert len(set(found.table(name))) == len(found.table(name).columns), name


@pytest.mark.parametrize("rule", [Rule.RAW, Rule.UNIQUE, Rule.QUESTION, Rule.DECISION])
def test_experts_equal_naive_loop(run: Any, rule: Rule) -> None:
    found, tokens = run.naive(rule)
    table = quick(run.trace, rule=rule).experts.set_index(["layer", "expert"])
    total = sum(tokens.values())
    for spec in run.layers:
        for expert in range(spec.num_experts):
            number = sum(n for (_, _, e), n in found[spec.layer].items() if e == expert)
            row = table.loc[spec.layer, expert]
            assert row["count"] == number
            assert row["frequency"] == pytest.approx(number / total)
            fair = total * spec.top_k / spec.num_experts
            assert row["relative_load"] == pytest.approx(number / fair)


@pytest.mark.parametrize("rule", [Rule.RAW, Rule.UNIQUE])
def test_rules_have_the_tokens_that_the_model_ran(run: Any, rule: Rule) -> None:
    """Whatever the report counts: `raw` beside it, prompts as often as they were run."""
    table = quick(run.trace, rule=rule).table("rules").set_index(["rule", "layer"])
    for name in ("raw", "unique", "question", "decision"):
        found, _ = run.naive(name)
        for spec in run.layers:
            counts = [
                sum(n for (_, _, e), n in found[spec.layer].items() if e == expert)
                for expert in range(spec.num_experts)
            ]
            row = table.loc[name, spec.layer]
            assert row["assignments"] == sum(counts)
            assert row["unseen"] == counts.count(0)
            assert row["max_vio"] == pytest.approx(max(counts) * len(counts) / sum(counts) - 1)


def test_layers_of_a_known_trace(new_trace: Any) -> None:
    spec = LayerSpec(layer=7, num_experts=4, top_k=2)
    trace = new_trace([spec], [np.array([[0, 1], [0, 1], [0, 2]], np.uint8)])
    row = quick(trace).layers.loc[0]
    assert (row["layer"], row["tokens"], row["assignments"], row["unseen"]) == (7, 3, 6, 1)
    assert row["max_vio"] == pytest.approx(1)
    assert row["unseen_null"] == pytest.approx(4 * 0.5**3)


def test_experts_of_prefixes_alone_are_among_those_ever_selected(tmp_path: Path) -> None:
    spec = LayerSpec(layer=0, num_experts=9, top_k=1)
    with TraceWriter(tmp_path / "t", layers=[spec]) as writer:
        for number in range(3):
            ids_TK = np.array([[0], [1], [2], [3], [4]])
            writer.add([ids_TK], doc_id=number, prefix_end=4, new_from=4 * (number > 0))
    row = quick(tmp_path / "t").layers.loc[0]
    assert (row["documents"], row["unseen"], row["chao2"]) == (4, 4, 5)


def test_no_tokens_are_null_everywhere(new_trace: Any, tmp_path: Path) -> None:
    spec = LayerSpec(layer=0, num_experts=4, top_k=2)
    trace = new_trace([spec], [np.array([[0, 1]], np.uint8)], new_from=-1)
    found = quick(trace, rule="unique")
    record = to_records(found.layers)[0]
    assert record["tokens"] == 0
    assert all(record[name] is None for name in LAYER_COLUMNS.split()[5:])
    json.dumps(to_records(found.experts), allow_nan=False, default=int)
    write_table(found.layers, tmp_path / "layers.csv")
    assert pd.read_csv(tmp_path / "layers.csv").loc[0, "max_vio":"unseen_noise"].isna().all()


@pytest.mark.parametrize("capture", ["ids", "counts"])
def test_every_table_is_written_and_read_back(run: Any, tmp_path: Path, capture: str) -> None:
    """Also of a trace that has counts alone: what those do not tell is null or has no rows."""
    found = quick(run.trace if capture == "ids" else counts_only(run, tmp_path / "counts"))
    for name in TABLES:
        # A name that is not UTF-8, as file systems may have it.
        table, path = found.table(name), tmp_path / f"{name}\udcff.csv"
        write_table(table, path)
        text = pd.read_csv(path)
        with path.with_suffix(".parquet").open("rb") as file:
            columns = pq.read_table(file).to_pandas()
        assert list(text) == list(columns) == [*table, "counting_rule", "token_order"], name
        assert len(text) == len(columns) == len(table), name
        numbers = table.select_dtypes("number").astype("float64")
        for column in numbers:
            np.testing.assert_array_equal(text[column].astype("float64"), numbers[column])
            np.testing.assert_array_equal(columns[column].astype("float64"), numbers[column])


def counts_only(run: Any, path: Path) -> Any:
    from tests.analysis.conftest import make_run

    return make_run(path, 0, capture="counts").trace
