"""First choices by subject, from tokens one by one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from moe_probe.analysis import analyse, first_choices
from moe_probe.errors import TraceError
from moe_probe.trace import LayerSpec, TraceWriter
from tests.analysis.streams import LAYERS, make_stream


@pytest.mark.parametrize(("seed", "documents", "prefix"), [(0, 14, 3), (1, 1, 0)])
def test_against_tokens_one_by_one(tmp_path: Path, seed: int, documents: int, prefix: int) -> None:
    trace, tokens = make_stream(tmp_path / "trace", seed, documents=documents, prefix=prefix)
    found = first_choices(trace, threads=1 + seed)
    names = ["", *sorted({token.subject for token in tokens})]
    for spec in LAYERS:
        table = found[found["layer"] == spec.layer]
        rows = [(s, e) for s in names for e in range(spec.num_experts)]
        assert list(zip(table["subject"], table["expert"], strict=True)) == rows
        if not spec.empty_slots:
            assert table["frequency_null"].tolist() == [1 / spec.num_experts] * len(rows)
        for row in table.to_dict("records"):
            text = [t.experts[spec.layer] for t in tokens if row["subject"] in ("", t.subject)]
            first = sum(slots[:1] == [row["expert"]] for slots in text)
            selected = sum(row["expert"] in slots for slots in text)
            assert row["count"] == first
            assert row["frequency"] == first / len(text)
            filled = sum(len(slots) > 0 for slots in text)
            assert row["frequency_null"] == pytest.approx(filled / len(text) / spec.num_experts)
            slots = sum(map(len, text))
            assert row["lead_null"] == (pytest.approx(filled / slots) if slots else pd.NA)
            assert row["lead"] == first / selected if selected else pd.isna(row["lead"])


def write(path: Path, order: str | None) -> Path:
    layers = [LayerSpec(layer=0, num_experts=4, top_k=2)]
    run = {} if order is None else {"slot_order": order}
    with TraceWriter(path, layers=layers, run=run) as writer:
        writer.add([np.array([[1, 0], [1, 2], [3, 1]])], multiplicity=2, subject="law")
    return path


def test_repeated_rows_count_as_often_as_the_rule_says(tmp_path: Path) -> None:
    path = write(tmp_path / "t", "descending_weight")
    for rule, times in (("raw", 2), ("unique", 1)):
        found = first_choices(path, rule=rule).query("subject == 'law'")
        assert found["count"].tolist() == [0, 2 * times, 0, times]
        assert found["lead"].fillna(-1).tolist() == [0, 2 / 3, 0, 1]


@pytest.mark.parametrize("order", ["unknown", None])
def test_unknown_order_of_slots(tmp_path: Path, order: str | None) -> None:
    path = write(tmp_path / "t", order)
    with pytest.raises(TraceError, match="does not say in which order the slots"):
        first_choices(path)
    found = analyse(path, shuffles=2, replicates=2, permutations=2)
    assert not len(found.table("slots"))
    assert set(found.table("indices")["of"]) == {"choices", "2 devices"}
    assert found.table("repeats").filter(like="first_choice").isna().all(axis=None)
