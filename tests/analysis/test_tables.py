"""The report's tables: their columns, and values of a trace written and read back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from moe_probe.analysis.rules import Rule
from moe_probe.analysis.scan import count
from moe_probe.analysis.tables import experts_table, layers_table, to_records, write_csv
from moe_probe.trace import LayerSpec, TraceWriter, open_trace

DATA = Path(__file__).parents[2] / "../shared/data/deepseek-v2-lite"
LAYER_COLUMNS = (
    "layer num_experts top_k tokens assignments max_vio max_vio_null cv cv_null gini gini_null "
    "entropy entropy_null effective_experts effective_experts_null kl_uniform kl_uniform_null "
    "total_variation total_variation_null unseen unseen_null"
)


def test_columns_are_frozen(run: Any) -> None:
    layers = list(count(run.trace).by_layer())
    assert list(layers_table(layers)) == LAYER_COLUMNS.split()
    assert list(experts_table(layers)) == ["layer", "expert", "count", "frequency", "relative_load"]


@pytest.mark.parametrize("rule", [Rule.RAW, Rule.UNIQUE, Rule.QUESTION, Rule.DECISION])
def test_experts_equal_naive_loop(run: Any, rule: Rule) -> None:
    found, tokens = run.naive(rule)
    table = experts_table(count(run.trace, rule).by_layer()).set_index(["layer", "expert"])
    total = sum(tokens.values())
    for spec in run.layers:
        for expert in range(spec.num_experts):
            number = sum(n for (_, _, e), n in found[spec.layer].items() if e == expert)
            row = table.loc[spec.layer, expert]
            assert row["count"] == number
            assert row["frequency"] == pytest.approx(number / total)
            fair = total * spec.top_k / spec.num_experts
            assert row["relative_load"] == pytest.approx(number / fair)


def test_layers_of_a_known_trace(new_trace: Any) -> None:
    spec = LayerSpec(layer=7, num_experts=4, top_k=2)
    trace = new_trace([spec], [np.array([[0, 1], [0, 1], [0, 2]], np.uint8)])
    row = layers_table(count(trace).by_layer()).loc[0]
    assert (row["layer"], row["tokens"], row["assignments"], row["unseen"]) == (7, 3, 6, 1)
    assert row["max_vio"] == pytest.approx(1)
    assert row["unseen_null"] == pytest.approx(4 * 0.5**3)


def test_no_tokens_are_null_everywhere(new_trace: Any, tmp_path: Path) -> None:
    spec = LayerSpec(layer=0, num_experts=4, top_k=2)
    trace = new_trace([spec], [np.array([[0, 1]], np.uint8)], new_from=-1)
    layers = list(count(trace).by_layer())
    record = to_records(layers_table(layers))[0]
    assert record["tokens"] == 0
    assert all(record[name] is None for name in LAYER_COLUMNS.split()[5:])
    json.dumps(to_records(experts_table(layers)), allow_nan=False, default=int)
    write_csv(layers_table(layers), tmp_path / "layers.csv")
    assert pd.read_csv(tmp_path / "layers.csv").loc[0, "max_vio":].isna().all()


@pytest.mark.skipif(not DATA.is_dir(), reason="the DeepSeek-V2-Lite sample is not on this machine")
def test_law_trace_gives_published_layer_means(tmp_path: Path) -> None:
    data = np.load(DATA / "law.npz")
    stops = np.cumsum(data["document_lengths"])
    layers = [LayerSpec(layer=1 + i, num_experts=64, top_k=6) for i in range(26)]
    with TraceWriter(tmp_path / "law", layers=layers) as writer:
        for ids_TLK in np.split(data["experts"], stops[:-1]):
            writer.add(list(ids_TLK.swapaxes(0, 1)))
    table = layers_table(count(open_trace(tmp_path / "law"), Rule.UNIQUE).by_layer())
    assert table["tokens"].tolist() == [8327] * 26
    assert f"{table['max_vio'].mean():.2f}" == "2.52"
    assert f"{table['effective_experts'].mean():.1f}" == "54.4"
