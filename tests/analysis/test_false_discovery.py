"""Fair random routing, 200 traces of it: every q-value that users see keeps its rate.

Where nothing is to be found, any discovery is false: a family of tests may have one with q below
5 % in 5 % of the traces. Subjects, right answers and experts are drawn independently.

Shape suffixes: D documents, S seeds.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from moe_probe.analysis import exposures
from moe_probe.analysis.comparison.results import TABLES as COMPARED
from moe_probe.analysis.comparison.results import compare
from moe_probe.analysis.comparison.sides import CompareSettings
from moe_probe.analysis.results import TABLES, analyse
from tests.analysis.planted import ragged, write

SEEDS, LAYERS, EXPERTS, TOP_K, LEVEL = 200, 3, 8, 2, 0.05
Q_VALUES = {
    *{("experts", "q_own"), ("experts", "q_fair"), ("experts", "information_q")},
    *{("subjects", "q_value"), ("specialization", "q_value"), ("correctness", "q_value")},
}
"""Tables and columns of an analysis."""
BESIDE = {("compare", "q_value"), ("exposures", "q_value")}


def fair_trace(path: Path, seed: int) -> Path:
    names, tokens_D = ragged(subjects=2, each=30, length=10, seed=seed)
    weights = dict.fromkeys(range(LAYERS), np.ones((len(names), EXPERTS)))
    correct = np.random.default_rng(seed).random(len(names)) < 0.6
    return write(path, weights, names, tokens_D, top_k=TOP_K, seed=seed, correct=correct.tolist())


@pytest.fixture(scope="module")
def smallest(tmp_path_factory: Any) -> pd.DataFrame:
    """The smallest q-values of every trace; every second is compared with the one before."""
    folder = tmp_path_factory.mktemp("fair")
    paths = [fair_trace(folder / str(seed), seed) for seed in range(SEEDS)]
    rows = []
    for seed, path in enumerate(paths):
        options: Any = {"shuffles": 2, "replicates": 0, "permutations": 39, "threads": 1}
        found = analyse(path, windows=(50,), **options)
        row = {(name, column): found.table(name)[column].min() for name, column in Q_VALUES}
        row["exposures", "q_value"] = exposures(path, least=0.25, threads=1)["q_value"].min()
        if seed % 2:
            compared = compare(paths[seed - 1 : seed + 1], CompareSettings(replicates=2, threads=1))
            row["compare", "q_value"] = compared.table("experts")["q_value"].min()
        rows.append(row)
    return pd.DataFrame(rows)


def q_columns(table: pd.DataFrame) -> list[str]:
    return [name for name in map(str, table) if name.startswith("q_") or name.endswith("_q")]


def test_no_q_value_is_missing_here(tmp_path: Path) -> None:
    paths = [fair_trace(tmp_path / str(seed), seed) for seed in range(2)]
    found = analyse(paths[0], shuffles=2, replicates=2, permutations=2)
    columns = {(name, column) for name in TABLES for column in q_columns(found.table(name))}
    assert columns == Q_VALUES
    compared = compare(paths, CompareSettings(replicates=2))
    columns = {(name, column) for name in COMPARED for column in q_columns(compared.table(name))}
    assert columns == {("experts", "q_value")}


@pytest.mark.parametrize("name", sorted(Q_VALUES | BESIDE), ids=".".join)
def test_false_discoveries_keep_their_rate(smallest: pd.DataFrame, name: tuple[str, str]) -> None:
    q_value_S = smallest[name].dropna().to_numpy()
    number = SEEDS // 2 if name[0] == "compare" else SEEDS
    assert len(q_value_S) == number
    most = LEVEL + 3 * math.sqrt(LEVEL * (1 - LEVEL) / number)
    assert (q_value_S < LEVEL).mean() <= most


def test_permutations_could_have_found_something(smallest: pd.DataFrame) -> None:
    """39 permutations of 24 experts resolve the level that they keep."""
    for name in (("experts", "information_q"), ("specialization", "q_value")):
        assert (smallest[name] < LEVEL).any()
