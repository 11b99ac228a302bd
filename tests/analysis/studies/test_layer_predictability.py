"""Experts foreseen from the layer before, against loops over tokens."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from moe_probe.analysis import expert_flows, layer_predictability
from moe_probe.analysis.reading.source import Source
from moe_probe.analysis.statistics.clusters import halves
from moe_probe.errors import TraceError
from moe_probe.trace import LayerSpec, TraceWriter
from tests.analysis.conftest import Run, make_run
from tests.analysis.streams import LAYERS, Token, make_stream


def foreseen(fitted: list[Token], token: Token, here: LayerSpec, there: LayerSpec) -> set[int]:
    """The k experts of most posterior odds, sums of logs one by one."""
    pairs = [(a, b) for t in fitted for a in t.experts[here.layer] for b in t.experts[there.layer]]
    flows, share = Counter(pairs), Counter(b for _, b in pairs)
    tiny = np.finfo(float).tiny
    scores = []
    for b in range(there.num_experts):
        q = share[b] / len(pairs) or tiny
        odds = [math.log((flows[a, b] + q) / q) for a in token.experts[here.layer]]
        scores.append(math.log(q) + sum(odds))
    order = sorted(range(there.num_experts), key=lambda b: -scores[b])
    kept = order[: there.top_k]
    # Ties at the end could go either way: no statement then.
    is_tied = math.isclose(scores[kept[-1]], scores[order[there.top_k]], rel_tol=1e-6)
    return set() if is_tied else set(kept)


@pytest.mark.parametrize(("seed", "documents"), [(0, 14), (1, 40)])
def test_against_naive_bayes_token_by_token(tmp_path: Path, seed: int, documents: int) -> None:
    trace, tokens = make_stream(tmp_path / "trace", seed, documents=documents)
    names = sorted({(t.subject, t.document) for t in tokens})
    number = dict(zip(names, halves(Source(trace).index.clusters.keys).tolist(), strict=True))
    half = [[t for t in tokens if number[t.subject, t.document] == h] for h in (0, 1)]
    found = layer_predictability(trace, threads=2)
    assert found["layer"].tolist() == [1, 3, 4]
    assert found["next_layer"].tolist() == [3, 4, 7]
    assert found["dense_between"].tolist() == [1, 0, 2]
    for (here, there), row in zip(pairwise(LAYERS), found.to_dict("records"), strict=True):
        selected = sum(len(t.experts[there.layer]) for t in tokens)
        usual = 0
        for fitted, judged in (half, half[::-1]):
            often = Counter(e for t in fitted for e in t.experts[there.layer])
            order = sorted(range(there.num_experts), key=lambda e: (-often[e], e))[: there.top_k]
            usual += sum(e in order for t in judged for e in t.experts[there.layer])
        assert row["selections"] == selected
        assert row["recall_null"] == pytest.approx(usual / selected)
        if there.num_experts > 10:
            continue
        low = high = 0
        for fitted, judged in (half, half[::-1]):
            for token in judged:
                kept, chosen = foreseen(fitted, token, here, there), token.experts[there.layer]
                low += len(kept & set(chosen))
                high += len(kept & set(chosen)) if kept else len(chosen)
        assert low / selected <= row["recall"] + 1e-9
        assert row["recall"] <= high / selected + 1e-9
        assert high - low < selected / 3, "few ties"


@pytest.mark.parametrize(("seed", "documents"), [(0, 14), (1, 40)])
def test_flows_token_by_token(tmp_path: Path, seed: int, documents: int) -> None:
    trace, tokens = make_stream(tmp_path / "trace", seed, documents=documents)
    found = expert_flows(trace, most=10_000)
    names = sorted({(t.subject, t.document) for t in tokens})
    number = dict(zip(names, halves(Source(trace).index.clusters.keys).tolist(), strict=True))
    parts = [tokens, *([t for t in tokens if number[t.subject, t.document] == h] for h in (0, 1))]
    for here, there in pairwise(LAYERS):
        rows = found[found["layer"] == here.layer].to_dict("records")
        assert len(rows) == here.num_experts * there.num_experts
        for row in rows:
            gap = there.layer - here.layer - 1
            assert (row["next_layer"], row["dense_between"]) == (there.layer, gap)
            for name, some in zip(("lift", "lift_one_half", "lift_other_half"), parts, strict=True):
                sets = [(t.experts[here.layer], t.experts[there.layer]) for t in some]
                both = sum(row["expert"] in a and row["next_expert"] in b for a, b in sets)
                # Pairs of slots, which are tokens where every slot is filled.
                pairs = sum(len(a) * len(b) for a, b in sets)
                from_here = sum(len(b) for a, b in sets if row["expert"] in a)
                to_there = sum(len(a) for a, b in sets if row["next_expert"] in b)
                chance = from_here * to_there / max(pairs, 1)
                expected = both / chance if chance >= 5 else math.nan
                assert row[name] == pytest.approx(expected, nan_ok=True)
                if name == "lift":
                    assert (row["count"], row["expected"]) == (both, pytest.approx(chance))
    few = expert_flows(trace, most=3)
    assert few["layer"].value_counts().to_dict() == {1: 3, 3: 3, 4: 3}
    assert few.equals(found.groupby("layer").head(3).reset_index(drop=True))


def test_a_layer_that_decides_the_next(tmp_path: Path) -> None:
    layers = [
        LayerSpec(layer=0, num_experts=16, top_k=1),
        LayerSpec(layer=2, num_experts=9, top_k=2),
    ]
    rng = np.random.default_rng(1)
    next_of_N2 = np.stack([rng.permutation(9)[:2] for _ in range(16)])
    with TraceWriter(tmp_path / "trace", layers=layers) as writer:
        for number in range(20):
            ids_T1 = rng.integers(0, 16, (50, 1))
            writer.add([ids_T1, next_of_N2[ids_T1[:, 0]]], doc_id=number)
    (row,) = layer_predictability(tmp_path / "trace").to_dict("records")
    assert (row["recall"], row["dense_between"], row["selections"]) == (1, 1, 2000)
    assert 0.2 < row["recall_null"] < 0.6
    # Pairs that never occur are as telling.
    flows = expert_flows(tmp_path / "trace", most=16 * 9).query("count > 0")
    wanted = {(a, int(b)) for a, next_2 in enumerate(next_of_N2) for b in next_2}
    assert set(zip(flows["expert"], flows["next_expert"], strict=True)) == wanted
    assert (flows["lift"] > 1.5).all()


def test_independent_layers_give_the_null(tmp_path: Path) -> None:
    layers = [LayerSpec(layer=n, num_experts=8, top_k=2) for n in (0, 1)]
    rng = np.random.default_rng(2)
    rate_N = np.arange(1, 9)
    with TraceWriter(tmp_path / "trace", layers=layers) as writer:
        for number in range(30):
            score = rng.gumbel(size=(2, 200, 8)) + np.log(rate_N)
            writer.add(list(np.argsort(-score, axis=2)[:, :, :2]), doc_id=number)
    (row,) = layer_predictability(tmp_path / "trace").to_dict("records")
    assert row["recall"] == pytest.approx(row["recall_null"], abs=0.02)


def test_rows_count_as_often_as_the_rule_says(tmp_path: Path) -> None:
    run = make_run(tmp_path / "trace", 1)
    found = layer_predictability(run.trace, rule="raw").set_index("layer")
    _, tokens = run.naive("raw")
    for here, there in pairwise(run.layers):
        assert found["selections"][here.layer] == tokens.total() * there.top_k


def test_what_cannot_be_told(counts_run: Run, tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="no per-token rows, which this needs"):
        layer_predictability(counts_run.trace)
    layers = [LayerSpec(layer=n, num_experts=4, top_k=1) for n in (0, 1)]
    with TraceWriter(tmp_path / "one", layers=layers) as writer:
        writer.add([np.zeros((5, 1), int)] * 2, doc_id=0)
    (row,) = layer_predictability(tmp_path / "one").to_dict("records")
    assert row["selections"] == 5
    assert math.isnan(row["recall"])
    assert math.isnan(row["recall_null"])
    with TraceWriter(tmp_path / "single", layers=layers[:1]) as writer:
        writer.add([np.zeros((5, 1), int)])
    assert len(layer_predictability(tmp_path / "single")) == 0
    for most in (0, -1):
        with pytest.raises(
            ValueError, match=f"{most} pairs of a layer: a whole number, at least one"
        ):
            expert_flows(tmp_path / "one", most=most)


def test_progress_goes_from_start_to_end(tmp_path: Path) -> None:
    trace, _ = make_stream(tmp_path / "trace", 0)
    steps: list[tuple[int, int]] = []
    layer_predictability(trace, threads=1, progress=lambda done, all_: steps.append((done, all_)))
    assert steps == sorted(steps)
    assert steps[-1] == (8, 8)
