"""Answers by experts used, and selectivity, from single documents.

Shape suffixes: D documents, S subjects, N experts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from moe_probe.analysis import analyse, expert_selectivity, exposures, subject_selectivity
from moe_probe.analysis.reading import index
from moe_probe.errors import TraceError
from moe_probe.trace import LayerSpec, TraceWriter
from tests.analysis.conftest import Run
from tests.analysis.naive import NaiveLayer, entropy
from tests.analysis.streams import LAYERS, make_stream

SELECTIVITIES: list[Callable[..., pd.DataFrame]] = [expert_selectivity, subject_selectivity]


def write(path: Path, documents: list[dict[str, Any]], layer: LayerSpec) -> Path:
    """Write documents whose experts are given token by token."""
    correct = {
        ("t", n): d["correct"] for n, d in enumerate(documents) if d.get("correct") is not None
    }
    writer = TraceWriter(path, layers=[layer])
    for number, facts in enumerate(documents):
        ids_TK = np.array(facts["ids"])
        writer.add([ids_TK], task="t", subject=facts["subject"], doc_id=number)
    writer.close(correct=correct)
    return path


def random_answers(path: Path, seed: int, layer: LayerSpec) -> tuple[Path, list[dict[str, Any]]]:
    """Ragged documents of two subjects, right, wrong or unknown; expert 0 is never selected."""
    rng = np.random.default_rng(seed)
    documents = [
        {
            "subject": ("law", "anatomy")[int(rng.integers(2))],
            "correct": (True, False, None)[int(rng.choice(3, p=[0.5, 0.4, 0.1]))],
            "ids": 1 + np.argsort(rng.random((rng.integers(1, 6), 5)), axis=1)[:, : layer.top_k],
        }
        for _ in range(40)
    ]
    return write(path, documents, layer), documents


@pytest.mark.parametrize(("top_k", "least"), [(1, 0.0), (2, 0.3)])
def test_accuracy_by_exposure(tmp_path: Path, top_k: int, least: float) -> None:
    layer = LayerSpec(layer=2, num_experts=6, top_k=top_k)
    path, documents = random_answers(tmp_path / "trace", top_k, layer)
    known = [d for d in documents if d["correct"] is not None]
    assert 0 < len(known) < len(documents)
    found = exposures(path, least=least)
    assert found["layer"].tolist() == [2] * 6
    for expert, row in enumerate(found.to_dict("records")):
        used = [(d["ids"] == expert).any(axis=1).mean() > least for d in known]
        right = [d["correct"] for d in known]
        assert row["exposed"] == sum(used)
        groups = [[r for r, u in zip(right, used, strict=True) if u == flag] for flag in (1, 0)]
        with_it, without = (float(np.mean(group)) if group else math.nan for group in groups)
        assert row["accuracy_exposed"] == pytest.approx(with_it, nan_ok=True)
        assert row["accuracy_unexposed"] == pytest.approx(without, nan_ok=True)
        assert row["difference"] == pytest.approx(with_it - without, nan_ok=True)
        differences, weights = [], []
        for subject in ("law", "anatomy"):
            mine = [d["subject"] == subject for d in known]
            one = [r for r, u, m in zip(right, used, mine, strict=True) if m and u]
            other = [r for r, u, m in zip(right, used, mine, strict=True) if m and not u]
            if one and other:
                differences.append(np.mean(one) - np.mean(other))
                weights.append(len(one) * len(other) / (len(one) + len(other)))
        within = np.average(differences, weights=weights) if weights else math.nan
        assert row["difference_within"] == pytest.approx(within, nan_ok=True)
    assert found["q_value"].isna().tolist() == found["z"].isna().tolist()
    assert pd.isna(found["difference"][0])


def test_more_documents_than_rows_have_the_same_accuracy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every document uses expert 1, and which share of them was right does not depend on rows."""
    layer = LayerSpec(layer=2, num_experts=6, top_k=2)
    path, documents = random_answers(tmp_path / "trace", 4, layer)
    right = [d["correct"] for d in documents if d["correct"] is not None]
    whole = analyse(path, shuffles=1, replicates=3, permutations=3)
    monkeypatch.setattr(index, "MAX_CLUSTERS", len(documents) // 3)
    found = exposures(path).set_index("expert")
    rows = analyse(path, shuffles=1, replicates=3, permutations=3)
    assert found["exposed"].max() == len(right)
    everywhere = found[found["exposed"] == len(right)]
    assert everywhere["accuracy_exposed"].tolist() == pytest.approx(
        [np.mean(right)] * len(everywhere)
    )
    # Nobody knows which of the documents of a row use an expert; how many there are is known.
    assert rows.layers["documents"].tolist() == whole.layers["documents"].tolist()
    assert whole.layers["documents"][0] == len(documents)
    assert rows.experts[["documents", "idle_documents"]].isna().all(axis=None)
    assert rows.layers["unseen_mass"].isna().all()
    assert whole.experts["documents"].notna().all()
    assert rows.layers["chao2"][0] == 5


def test_an_expert_of_right_answers(tmp_path: Path) -> None:
    """Law is easy and uses expert 1; within law, expert 2 goes with right answers."""
    layer = LayerSpec(layer=0, num_experts=3, top_k=1)
    documents: list[dict[str, Any]] = []
    for number in range(80):
        law, right = number % 2 == 0, number % 5 != 0 if number % 2 == 0 else number % 5 == 0
        ids = [[1 if law else 0], [2 if right else 0]]
        documents.append({"subject": "law" if law else "art", "correct": right, "ids": ids})
    found = exposures(write(tmp_path / "trace", documents, layer))
    assert found["difference"][1] > 0.5
    assert pd.isna(found["difference_within"][1])
    assert found["difference_within"][2] == pytest.approx(1)
    assert found["q_value"][2] < 1e-6


def test_what_cannot_be_told(counts_run: Run, tmp_path: Path) -> None:
    trace, _ = make_stream(tmp_path / "stream", 0)
    with pytest.raises(TraceError, match="does not say of any document whether it was answered"):
        exposures(trace)
    for function in (exposures, *SELECTIVITIES):
        with pytest.raises(TraceError, match="no per-token rows, which this needs"):
            function(counts_run.trace)
    for function in SELECTIVITIES:
        with pytest.raises(ValueError, match="0 permutations"):
            function(trace, permutations=0)
    for least in (-0.1, 1.0):
        with pytest.raises(ValueError, match="a share of a document's tokens"):
            exposures(trace, least=least)


@pytest.mark.parametrize(("seed", "documents", "prefix"), [(0, 14, 3), (1, 1, 0)])
def test_selectivity_from_single_tokens(
    tmp_path: Path, seed: int, documents: int, prefix: int
) -> None:
    trace, tokens = make_stream(tmp_path / "trace", seed, documents=documents, prefix=prefix)
    tokens = [token for token in tokens if token.document[0]]
    experts = expert_selectivity(trace, permutations=2, threads=2)
    subjects = subject_selectivity(trace, permutations=2, threads=1)
    names = sorted({token.subject for token in tokens})
    for spec in LAYERS:
        layer = NaiveLayer.of(tokens, spec)
        counts = {s: [layer.count(e, layer.of_subject(s)) for e in layer.experts] for s in names}
        rows = experts[experts["layer"] == spec.layer].to_dict("records")
        for expert, row in enumerate(rows):
            rate = [counts[s][expert] / len(layer.of_subject(s)) for s in names]
            fair = [sum(counts[s]) / spec.num_experts for s in names]
            above = sum(counts[s][expert] > f for s, f in zip(names, fair, strict=True))
            assert (row["expert"], row["subjects_above_fair"]) == (expert, above)
            known = sum(rate) > 0 and len(names) > 1
            value = entropy(rate) / math.log(len(names)) if known else math.nan
            assert row["subject_entropy"] == pytest.approx(value, nan_ok=True, abs=1e-12)
        found = subjects[subjects["layer"] == spec.layer].set_index("subject")
        assert found.index.tolist() == ["", *names]
        for name in ["", *names]:
            own = [sum(c) for c in zip(*counts.values(), strict=True)] if not name else counts[name]
            values = found.loc[[name]].iloc[0]
            assert values["effective_experts"] == pytest.approx(math.exp(entropy(own)))
            busiest = np.cumsum(sorted(own, reverse=True))
            for percent in (50, 80, 90, 99):
                number = int((busiest < percent / 100 * sum(own) - 1e-9).sum()) + 1
                assert values[f"experts_{percent}"] == number
        apart = math.nan
        if len(names) == 2:
            shares = [np.array(c) / sum(c) for c in counts.values()]
            apart = float(np.abs(shares[0] - shares[1]).sum() / 2)
        for value in found["total_variation"]:
            assert value == pytest.approx(apart, nan_ok=True)


def test_null_is_that_of_subjects_dealt_out_anew(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    layer = LayerSpec(layer=0, num_experts=8, top_k=2)
    for name, drift in (("alike", 0.0), ("apart", 3.0)):
        documents = [
            {
                "subject": "abcd"[number % 4],
                "ids": np.argsort(
                    rng.random((20, 8)) - drift * (np.arange(8) % 4 == number % 4), axis=1
                )[:, :2],
            }
            for number in range(80)
        ]
        path = write(tmp_path / name, documents, layer)
        experts, subjects = expert_selectivity(path), subject_selectivity(path)
        pairs = [(experts, "subject_entropy", 0.02), (subjects, "total_variation", 0.02)]
        for table, column, near in pairs:
            found, null = table[column].mean(), table[f"{column}_null"].mean()
            if drift:
                assert abs(found - null) > 0.3
            else:
                assert abs(found - null) < near
        assert experts.equals(expert_selectivity(path, threads=1)), "same seed, same numbers"
    assert (subjects["experts_99"][1:] == 2).all()
