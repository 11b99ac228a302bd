"""Fair random routing end to end: 200 layers in ten traces, in which nothing may be found.

Layers are independent of one another, and each stands for a trace of its own where tests of one
layer are counted. Rates may exceed their level by three standard errors.

Shape suffixes: D documents, N experts of a layer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from moe_probe.analysis.metrics.subjects import two_sided_p
from moe_probe.analysis.results import Analysis, analyse
from moe_probe.analysis.statistics.multiplicity import benjamini_hochberg
from tests.analysis.planted import ragged, write

EXPERTS, TOP_K, LAYERS, TRACES = 16, 2, 20, 10
LEVEL = 0.05


@dataclass(frozen=True)
class Kind:
    spread: float
    """By how much each document prefers experts of its own: sd of the log of their weights."""
    traces: list[Analysis]

    def table(self, name: str) -> pd.DataFrame:
        tables = [found.table(name).assign(trace=n) for n, found in enumerate(self.traces)]
        return pd.concat(tables, ignore_index=True)

    @property
    def layers(self) -> int:
        return LAYERS * len(self.traces)


def make(folder: Path, spread: float, number: int) -> Kind:
    traces = []
    for seed in range(number):
        names, tokens_D = ragged(subjects=2, each=30, length=15, seed=seed)
        rng = np.random.default_rng(100 + seed)
        shape = len(names), EXPERTS
        weights = {layer: np.exp(spread * rng.normal(size=shape)) for layer in range(LAYERS)}
        path = write(folder / str(seed), weights, names, tokens_D, top_k=TOP_K, seed=seed)
        options: Any = {"shuffles": 3, "replicates": 40, "permutations": 39}
        traces.append(analyse(path, windows=(100, 200, 500), **options))
    return Kind(spread, traces)


@pytest.fixture(scope="module")
def fair(tmp_path_factory: Any) -> Kind:
    return make(tmp_path_factory.mktemp("fair"), 0.0, TRACES)


@pytest.fixture(scope="module", params=[0.0, 0.7])
def kind(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Kind:
    """Also documents that are far from alike, though their sum is fair."""
    if request.param == 0:
        return request.getfixturevalue("fair")  # type: ignore[no-any-return]
    return make(tmp_path_factory.mktemp("unlike"), request.param, 3)


def assert_rate(found: Any, expected: float = LEVEL) -> None:
    """That no more than expected are true, allowing for three standard errors."""
    found = np.asarray(found)
    assert found.mean() <= expected + 3 * math.sqrt(expected * (1 - expected) / len(found))


def discoveries(table: pd.DataFrame, p_values: Any) -> list[bool]:
    """Whether the tests of each layer, as a family, make any discovery."""
    families = pd.Series(p_values, index=table.index).groupby([table["trace"], table["layer"]])
    return [bool((benjamini_hochberg(p.to_numpy()) < LEVEL).any()) for _, p in families]


def test_tiers(kind: Kind) -> None:
    assert set(kind.table("experts")["tier"]) <= {"used", "not certified"}
    assert (kind.table("experts")["tier"] == "used").mean() > 0.99


def test_sentences(kind: Kind) -> None:
    for found in kind.traces:
        text = found.headline
        assert text.uneven.startswith("No layer is loaded more unevenly than chance explains")
        assert text.uneven.endswith("Subjects do not differ in their experts beyond chance.")
        assert text.least_used.startswith("No expert is certified below 10% of its fair share.")
        assert text.least_used.endswith("no less than chance may leave to one of 320.")
        assert "nothing exceeds chance." in text.idle


def test_subjects(kind: Kind) -> None:
    table = kind.table("subjects")
    assert table["z"].notna().all()
    # Of two subjects each has what the other lacks: one test, not two.
    half = table[table["subject"] == "s0"]
    assert_rate(half["z"].abs() > 1.96)
    found = discoveries(half, two_sided_p(half["z"].to_numpy(np.float64)))
    assert len(found) == kind.layers
    assert_rate(found)


def test_information_among_permutations(kind: Kind) -> None:
    table = kind.table("specialization")
    assert_rate(table["p_value"] <= 2 / 40)
    # Permuted labels give what these give: uniform p-values.
    assert abs(table["p_value"].mean() - 0.5) < 3 * math.sqrt(1 / 12 / len(table)) + 1 / 80
    states = [state for found in kind.traces for state in found.sums.layers.values()]
    p_values = [s.information.expert_p_value_N for s in states if s.information is not None]
    assert len(p_values) == kind.layers
    assert_rate(np.concatenate(p_values) <= 2 / 40)
    found = kind.table("experts").groupby("trace")["information_q"].min() < LEVEL
    assert_rate(found)


def test_gap_test(fair: Kind) -> None:
    """Conservative: the rate is of the same tokens, and the run the median of several orders."""
    table = fair.table("experts")
    assert_rate(table["p_own"] < LEVEL)
    assert_rate(table["p_fair"] < LEVEL)
    assert_rate(discoveries(table, table["p_own"].to_numpy()))


def test_intervals_and_layers(kind: Kind) -> None:
    table = kind.table("experts")
    covered = ((table["ci_low"] <= 1) & (table["ci_high"] >= 1)).mean()
    assert 0.93 <= covered <= 0.97
    layers = kind.table("layers")
    assert_rate(layers["uniform_p"] < LEVEL)
    # The replicates have the noise of the documents and, where that is all, once more of it.
    assert 0.9 < layers["max_vio_noise"].mean() / layers["max_vio"].std() < 1.1 * math.sqrt(2)
    assert (layers["deff_median"].median() > 1.2) == (kind.spread > 0)


def test_indices_are_what_chance_gives(fair: Kind) -> None:
    layers = fair.table("layers")
    for name in ("max_vio", "cv", "gini", "entropy", "effective_experts", "total_variation"):
        error = layers[name].std() / math.sqrt(len(layers))
        assert abs(layers[name].mean() - layers[f"{name}_null"].mean()) < 4 * error, name
    batches = fair.table("batches").query("tokens_per_batch == 256")
    assert batches["cv"].mean() == pytest.approx(batches["cv_null"].mean(), rel=0.05)
    repeats = fair.table("repeats").query("subject == '' and lag == 1")
    assert repeats["overlap_ratio"].mean() == pytest.approx(TOP_K / EXPERTS, rel=0.02)
    # Only a bias to first order is left of the information of two independent layers.
    flows = fair.table("transitions")
    assert flows["information_bits"].mean() == pytest.approx(flows["null_bits"].mean(), rel=0.15)
    pairs = fair.table("coactivation")
    assert pairs["conditional"].mean() == pytest.approx((TOP_K - 1) / (EXPERTS - 1), rel=0.01)
    assert pairs["z"].std() == pytest.approx(1, abs=0.1)
