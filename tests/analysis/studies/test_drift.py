"""Windows of the stream against a list of its tokens.

Shape suffixes: T tokens, K slots.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from moe_probe.analysis import load_changes, load_drift
from moe_probe.analysis.studies import drift
from moe_probe.errors import TraceError, UsageError
from moe_probe.trace import LayerSpec, TraceWriter
from tests.analysis.conftest import Run, make_run
from tests.analysis.naive import NaiveLayer
from tests.analysis.streams import LAYERS, make_stream

WINDOW = 7


@pytest.mark.parametrize(("seed", "documents", "prefix"), [(0, 30, 3), (1, 1, 0)])
def test_against_a_list_of_tokens(tmp_path: Path, seed: int, documents: int, prefix: int) -> None:
    trace, tokens = make_stream(tmp_path / "trace", seed, documents=documents, prefix=prefix)
    assert documents == 1 or len(trace.routing_parts) > 2
    rows = iter(load_drift(trace, window=WINDOW, threads=2).to_dict("records"))
    windows = [tokens[i : i + WINDOW] for i in range(0, len(tokens) - WINDOW + 1, WINDOW)]
    counted = [token for window in windows for token in window]
    for spec in LAYERS:
        layer = NaiveLayer.of(tokens, spec)
        for expert in layer.experts:
            row = next(rows)
            assert (row["layer"], row["expert"]) == (spec.layer, expert)
            assert (row["window"], row["windows"]) == (WINDOW, len(windows))
            if len(windows) < 2:
                rest = ("frequency", "fano", "fano_null", "between", "between_null", "changes")
                assert pd.isna([row[name] for name in rest]).all()
                continue
            counts = [layer.count(expert, window) for window in windows]
            p = sum(counts) / len(counted)
            assert row["frequency"] == pytest.approx(p)
            assert row["fano_null"] == pytest.approx(1 - p)
            if not 0 < p < 1:
                assert pd.isna(row["between"])
                continue
            assert row["fano"] == pytest.approx(np.var(counts, ddof=1) / np.mean(counts))
            between = np.var([count / WINDOW for count in counts]) / (p * (1 - p))
            assert row["between"] == pytest.approx(between)
            null = (len(windows) - 1) / (len(counted) - 1)
            assert row["between_null"] == pytest.approx(null)
            worst = min(1, null * layer.deff(expert))
            assert row["between_null_documents"] == pytest.approx(worst)


def write(path: Path, ids_TK: np.ndarray, most: int = 500) -> Path:
    """Write one stream as documents of `most` tokens."""
    with TraceWriter(path, layers=[LayerSpec(layer=3, num_experts=6, top_k=2)]) as writer:
        for number, start in enumerate(range(0, len(ids_TK), most)):
            writer.add([ids_TK[start : start + most]], doc_id=number)
    return path


def test_traffic_that_changes(tmp_path: Path) -> None:
    """Expert 0 is busy in the first half, expert 5 in the second; the others never change."""
    rng = np.random.default_rng(0)
    score_TN = rng.random((20_000, 6))
    even = write(tmp_path / "even", np.argsort(-score_TN, axis=1)[:, :2])
    score_TN[:10_000, 0] += 0.8
    score_TN[10_000:, 5] += 0.8
    score_TN[:10_000, 5] -= 0.8
    score_TN[10_000:, 0] -= 0.8
    changing = write(tmp_path / "changing", np.argsort(-score_TN, axis=1)[:, :2])
    found = load_drift(changing).set_index("expert")
    assert found["windows"].tolist() == [20] * 6
    assert (found["between"][[0, 5]] > 0.5).all()
    assert (found["between"][[1, 2, 3, 4]] < 0.01).all()
    assert found["changes"].tolist() == [1, 0, 0, 0, 0, 1]
    changes = load_changes(changing)
    assert changes["expert"].tolist() == [0, 5]
    assert changes["first_token"].tolist() == [10_000, 10_000]
    assert np.sign(changes["change"]).tolist() == [-1, 1]
    of_chance = load_drift(even)
    assert of_chance["fano"].mean() == pytest.approx(of_chance["fano_null"].mean(), rel=0.2)
    assert of_chance["between"].mean() == pytest.approx(of_chance["between_null"].mean(), rel=0.2)
    assert len(load_changes(even)) == 0


def test_how_many_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = write(tmp_path / "trace", np.tile([[0, 1]], (5000, 1)))
    monkeypatch.setattr(drift, "MAX_WINDOWS", 4)
    assert load_drift(trace)["window"].tolist() == [1250] * 6
    with pytest.raises(UsageError, match="5,000 tokens make more than 4 windows of 1,249"):
        load_drift(trace, window=1249)
    with pytest.raises(ValueError, match="windows of 0 tokens"):
        load_changes(trace, window=0)


def test_what_cannot_be_told(counts_run: Run, tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="no per-token rows, which this needs"):
        load_drift(counts_run.trace)
    shared = make_run(tmp_path / "shared", 0).trace
    with pytest.raises(UsageError, match="Windows need every token once"):
        load_drift(shared, rule="raw")
    assert load_drift(shared, rule="question", window=3)["windows"].min() > 2
