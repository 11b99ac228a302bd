"""Experts per token, counted from lists of tokens."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from moe_probe.analysis import experts_per_token
from moe_probe.errors import TraceError
from moe_probe.trace import LayerSpec, TraceWriter
from tests.analysis.conftest import Run
from tests.analysis.streams import LAYERS, make_stream


def test_against_a_list_of_tokens(tmp_path: Path) -> None:
    trace, tokens = make_stream(tmp_path / "trace", 0, documents=20)
    rows = iter(experts_per_token(trace, threads=2).to_dict("records"))
    varying = 0
    for spec in LAYERS:
        for subject in ("", "anatomy", "law"):
            chosen = [t.experts[spec.layer] for t in tokens if subject in ("", t.subject)]
            sizes = [len(experts) for experts in chosen]
            filled = sum(sizes) / len(sizes) / spec.top_k
            for number in range(spec.top_k + 1):
                row = next(rows)
                assert (row["layer"], row["subject"]) == (spec.layer, subject)
                assert (row["experts"], row["tokens"]) == (number, sizes.count(number))
                assert row["share"] == pytest.approx(sizes.count(number) / len(sizes))
                ways = math.comb(spec.top_k, number)
                null = ways * filled**number * (1 - filled) ** (spec.top_k - number)
                assert row["share_null"] == pytest.approx(null)
                varying += 0 < row["share"] < 1
    assert next(rows, None) is None
    assert varying == 12


def test_slots_filled_at_random_are_binomial(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    ids_TK = np.argsort(rng.random((20_000, 8)), axis=1)[:, :4]
    ids_TK[rng.random(ids_TK.shape) < 0.3] = -1
    spec = LayerSpec(layer=0, num_experts=8, top_k=4, empty_slots=True)
    with TraceWriter(tmp_path / "trace", layers=[spec]) as writer:
        writer.add([ids_TK], doc_id=0, subject="a")
    found = experts_per_token(tmp_path / "trace")
    np.testing.assert_allclose(found["share"], found["share_null"], atol=0.01)
    assert found["share"].between(0.005, 0.5).all()


def test_what_cannot_be_told(counts_run: Run, tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="no per-token rows, which this needs"):
        experts_per_token(counts_run.trace)
    spec = LayerSpec(layer=0, num_experts=4, top_k=2)
    with TraceWriter(tmp_path / "prefix", layers=[spec]) as writer:
        writer.add([np.array([[0, 1], [1, 2]])], doc_id=0, subject="a", prefix_end=2)
    found = experts_per_token(tmp_path / "prefix", rule="question")
    assert found["tokens"].tolist() == [0] * 6
    assert found[["share", "share_null"]].isna().all(axis=None)
