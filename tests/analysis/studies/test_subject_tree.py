"""Clusters of subjects and of documents, from trees and distances made by hand.

Shape suffixes: K slots.
"""

from __future__ import annotations

import math
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from moe_probe.analysis import document_separation, subject_clades
from moe_probe.analysis.metrics.clustering import clade_chance
from moe_probe.analysis.reading.source import Source
from moe_probe.analysis.statistics.clusters import poisson_weights
from moe_probe.trace import LayerSpec, TraceWriter, open_trace
from tests.analysis.streams import LAYERS, make_stream

EXPERTS = 12
LAYER_NUMBERS = (0, 3)


def write(path: Path, seed: int, likeness: float, documents: int = 60) -> dict[Any, Any]:
    """Five subjects; a and b favour the same experts, and so do c and d, as far as is asked."""
    rng = np.random.default_rng(seed)
    counts: dict[Any, Any] = {}
    layers = [LayerSpec(layer=n, num_experts=EXPERTS, top_k=2) for n in LAYER_NUMBERS]
    with TraceWriter(path, layers=layers) as writer:
        for number in range(documents):
            subject = "abcde"[number % 5]
            favoured = np.arange(EXPERTS) % 3 == number % 5 // 2
            length = int(rng.integers(3, 9))
            ids = [
                np.argsort(rng.random((length, EXPERTS)) - likeness * favoured, axis=1)[:, :2]
                for _ in layers
            ]
            writer.add(ids, task="t", subject=subject, area="xxyyy"[number % 5], doc_id=number)
            for spec, ids_TK in zip(layers, ids, strict=True):
                counts[spec.layer, number] = np.bincount(ids_TK.ravel(), minlength=EXPERTS)
    return counts


def divergence(one: np.ndarray, other: np.ndarray) -> float:
    """Jensen-Shannon, in bits."""

    def entropy(share: np.ndarray) -> float:
        return -math.fsum(s * math.log2(s) for s in share.tolist() if s)

    one, other = one / one.sum(), other / other.sum()
    return entropy((one + other) / 2) - (entropy(one) + entropy(other)) / 2


def tree_of(totals: dict[Any, np.ndarray]) -> dict[frozenset[str], float]:
    """Average linkage by hand: join the two clusters whose members are nearest on average."""
    apart = {}
    for one, other in combinations("abcde", 2):
        bits = [divergence(totals[n, one], totals[n, other]) for n in LAYER_NUMBERS]
        apart[frozenset((one, other))] = math.sqrt(np.mean(bits))
    clusters, found = [frozenset(s) for s in "abcde"], {}
    while len(clusters) > 2:
        near = {
            (one, other): np.mean([apart[frozenset((s, t))] for s in one for t in other])
            for one, other in combinations(clusters, 2)
        }
        pair = min(near, key=lambda p: near[p])
        clusters = [c for c in clusters if c not in pair] + [pair[0] | pair[1]]
        found[clusters[-1]] = float(near[pair])
    return found


@pytest.mark.parametrize(("seed", "likeness", "documents"), [(0, 0.3, 60), (1, 0.0, 20)])
def test_clades_of_resampled_documents(
    tmp_path: Path, seed: int, likeness: float, documents: int
) -> None:
    counts = write(tmp_path / "t", seed, likeness, documents)
    keys = Source(open_trace(tmp_path / "t")).index.clusters.keys
    number_of = [int(key.split("\x1f")[4]) for key in keys]
    trees = []
    for weights in [np.ones(len(keys)), *poisson_weights(keys, 30)]:
        totals = {
            (layer, subject): np.zeros(EXPERTS) for layer in LAYER_NUMBERS for subject in "abcde"
        }
        for weight, number in zip(weights.tolist(), number_of, strict=True):
            for layer in LAYER_NUMBERS:
                totals[layer, "abcde"[number % 5]] += weight * counts[layer, number]
        trees.append(tree_of(totals) if all(c.any() for c in totals.values()) else None)
    expected, again = trees[0], [set(tree) for tree in trees[1:] if tree is not None]
    table = subject_clades(tmp_path / "t", replicates=30)
    found = {frozenset(row["subjects"].split("; ")): row for row in table.to_dict("records")}
    assert expected is not None
    assert set(found) == set(expected)
    assert table["height"].is_monotonic_increasing
    for clade, row in found.items():
        assert row["size"] == len(clade)
        assert row["height"] == pytest.approx(expected[clade])
        assert row["recurs"] == pytest.approx(np.mean([clade in tree for tree in again]))
        assert row["replicates"] == len(again)
    assert documents == 60 or len(again) < 30


def test_planted_pairs_recur(tmp_path: Path) -> None:
    write(tmp_path / "t", 3, 1.0, 200)
    table = subject_clades(tmp_path / "t").set_index("subjects")
    rows: dict[Any, Any] = table.to_dict("index")
    assert rows["a; b"]["recurs"] == rows["c; d"]["recurs"] == 1


def test_chance_of_a_clade_is_that_of_random_joins() -> None:
    rng, hits, rounds = np.random.default_rng(0), {2: 0, 3: 0, 4: 0}, 20_000
    for _ in range(rounds):
        branches = [frozenset([leaf]) for leaf in range(5)]
        while len(branches) > 1:
            one, other = (branches[n] for n in rng.choice(len(branches), 2, replace=False))
            branches = [b for b in branches if b not in (one, other)] + [one | other]
            for size in hits:
                hits[size] += branches[-1] == frozenset(range(size))
    for size, number in hits.items():
        chance = clade_chance(size, 5)
        error = math.sqrt(chance * (1 - chance) / rounds)
        assert abs(number / rounds - chance) < 4 * error


def test_separation_from_all_pairs_of_documents(tmp_path: Path) -> None:
    counts = write(tmp_path / "t", 5, 0.3)
    found = document_separation(tmp_path / "t", threads=1)
    rows: dict[Any, Any] = found.set_index(["layer", "by"]).to_dict("index")
    for layer in LAYER_NUMBERS:
        for by, labels in (("subject", "abcde"), ("area", "xxyyy")):
            label = [labels[number % 5] for number in range(60)]
            total, within, sizes = 0.0, 0.0, {c: label.count(c) for c in set(label)}
            roots = [np.sqrt(counts[layer, n] / counts[layer, n].sum()) for n in range(60)]
            for one, other in combinations(range(60), 2):
                square = float(((roots[one] - roots[other]) ** 2).sum())
                total += square / 60
                within += square / sizes[label[one]] * (label[one] == label[other])
            inner, outer = within / (60 - len(sizes)), (total - within) / (len(sizes) - 1)
            row = rows[layer, by]
            assert row["documents"] == 60
            assert row["pseudo_f"] == pytest.approx(outer / inner)
            assert row["explained"] == pytest.approx(1 - inner / (total / 59))
        assert rows[layer, "subject"]["explained"] > rows[layer, "length"]["explained"]


def test_what_cannot_be_told(tmp_path: Path) -> None:
    trace, _ = make_stream(tmp_path / "one", 2, documents=1, prefix=0)
    assert subject_clades(trace).empty
    separation = document_separation(trace)
    assert len(separation) == 3 * len(LAYERS)
    assert pd.isna(separation["pseudo_f"]).all()
    with pytest.raises(ValueError, match="0 replicates"):
        subject_clades(trace, replicates=0)
