"""The analysis of real traces, end to end: published numbers, and loops over the arrays.

Golden values are of DeepSeek-V2-Lite on two tasks of ESFT: 33 documents of law, 127 of intent.

Shape suffixes: T tokens, L layers, K slots, N experts, D documents, S subjects, B position bins.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from moe_probe.analysis.quality import Status
from moe_probe.analysis.reading.index import TraceIndex
from moe_probe.analysis.settings import Settings
from moe_probe.analysis.statistics.clusters import halves
from moe_probe.analysis.tables import gates, structure, subjects
from moe_probe.analysis.tables.experts import experts_table
from moe_probe.analysis.tables.layers import layers_table
from tests.analysis.documents import needs_data
from tests.analysis.golden import EXPERTS, LAYERS, TOP_K, Golden, golden

pytestmark = needs_data
QUICK = Settings(shuffles=2, replicates=10, permutations=20)


@pytest.fixture(scope="module")
def law(tmp_path_factory: Any) -> Golden:
    return golden(tmp_path_factory.mktemp("law") / "trace", ["law"], QUICK)


@pytest.fixture(scope="module")
def intent(tmp_path_factory: Any) -> Golden:
    return golden(tmp_path_factory.mktemp("intent") / "trace", ["intent"], QUICK)


@pytest.fixture(scope="module")
def both(tmp_path_factory: Any) -> Golden:
    return golden(tmp_path_factory.mktemp("both") / "trace", ["law", "intent"], QUICK)


@pytest.fixture(params=["law", "intent"])
def task(request: pytest.FixtureRequest) -> tuple[str, Golden]:
    return request.param, request.getfixturevalue(request.param)


def bits(joint_XY: np.ndarray) -> float:
    """I(x; y) of a table of counts, from its entropies."""

    def entropy(counts: np.ndarray) -> float:
        share = counts[counts > 0] / counts.sum()
        return float(-(share * np.log2(share)).sum())

    return entropy(joint_XY.sum(axis=0)) + entropy(joint_XY.sum(axis=1)) - entropy(joint_XY)


def test_published_imbalance(task: tuple[str, Golden]) -> None:
    name, data = task
    table = layers_table(data.sums)
    assert table["layer"].tolist() == list(LAYERS)
    assert set(table["tokens"]) == {8327 if name == "law" else 8222}
    mean = table[["max_vio", "cv", "gini"]].mean().round(2).tolist()
    assert mean == ([2.52, 0.61, 0.30] if name == "law" else [2.81, 0.79, 0.41])
    effective = round(table["effective_experts"].mean(), 1)
    assert effective == (54.4 if name == "law" else 48.4)
    assert not table["unseen"].any()


def test_published_null(intent: Golden) -> None:
    """Simulated values; the closed forms are within one per cent of them."""
    row = layers_table(intent.sums).iloc[0]
    assert row["max_vio_null"] == pytest.approx(0.0815, rel=0.01)
    assert row["cv_null"] == pytest.approx(0.0342, rel=0.01)
    assert row["gini_null"] == pytest.approx(0.0193, rel=0.01)


def test_published_design_effects(task: tuple[str, Golden]) -> None:
    """Of each layer the median over its experts; of these the mean, or the median, over layers."""
    name, data = task
    median_L = layers_table(data.sums)["deff_median"]
    expected = 2.1 if name == "law" else 0.8
    assert (round(median_L.mean(), 1), round(median_L.median(), 1)) == (expected, expected)


def test_every_check_passes(both: Golden) -> None:
    status = {check.check: check.status for check in both.sums.checks}
    assert set(status.values()) == {Status.PASS, Status.SKIP}
    passed = [name for name, found in status.items() if found is Status.PASS]
    assert passed == [f"Q{number}" for number in (1, 2, 3, 4, 5, 6, 9, 15, 17, 19, 20, 21)]


def test_published_overlaps_with_the_token_before(law: Golden) -> None:
    table = structure.repeats(law.sums).query("subject == 'law' and lag == 1")
    shown = table[table["layer"].isin([1, 8, 13, 20, 26])]
    found = shown["overlap_ratio"].round(3).tolist()
    assert found == [0.157, 0.341, 0.341, 0.299, 0.242]
    assert set(table["pairs"]) == {8327 - 33}
    lag_1_T = law.document_T[1:] == law.document_T[:-1]
    first_TL = law.ids_TLK[:, :, 0]
    same_TL = (first_TL[1:] == first_TL[:-1])[lag_1_T]
    assert table["first_choice"].tolist() == pytest.approx(same_TL.mean(axis=0).tolist())


def test_published_pair_of_experts(law: Golden) -> None:
    table = structure.coactivation(law.sums).query("layer == 13")
    assert len(table) == EXPERTS * (EXPERTS - 1)
    most = table.sort_values("conditional").iloc[-1]
    assert round(most["conditional"], 3) == 0.899
    first_T, second_T = (law.selected(13)[:, int(most[e])] for e in ("expert", "other"))
    assert most["count"] == (first_T & second_T).sum()
    assert most["conditional"] == second_T[first_T].mean()


def test_halves_of_the_documents(task: tuple[str, Golden]) -> None:
    """0.001 to 0.009 bits over four tasks, of which these are two."""
    _, data = task
    table = layers_table(data.sums)
    half_D = halves(TraceIndex.of(data.sums.trace).clusters.keys)
    is_odd_T = half_D[data.document_T] == 1
    for row in table.to_dict("records"):
        even_N, odd_N = (data.selected(row["layer"])[part].sum(0) for part in (~is_odd_T, is_odd_T))
        share_2N = np.stack([even_N / even_N.sum(), odd_N / odd_N.sum()])
        assert row["split_half_divergence"] == pytest.approx(bits(share_2N))
        ranks = pd.DataFrame({"even": even_N, "odd": odd_N}).rank()
        assert row["split_half_spearman"] == pytest.approx(ranks.corr().loc["even", "odd"])
    assert table["split_half_divergence"].round(3).between(0.001, 0.009).all()
    # Halves by chance differ by noise: law has 33 documents, and its layers are not independent.
    mean = table.mean(numeric_only=True)
    assert 0.5 < mean["split_half_divergence"] / mean["split_half_divergence_null"] < 2


def test_weight_of_the_first_choice(task: tuple[str, Golden]) -> None:
    _, data = task
    table = gates.confidence(data.sums).query("quantity == 'top_share'")
    share_TL = data.weights_TLK.max(axis=2) / data.weights_TLK.sum(axis=2)
    for name, quantile in {"q05": 0.05, "median": 0.5, "q95": 0.95}.items():
        expected_L = np.quantile(share_TL, quantile, axis=0)
        assert np.abs(table[name].to_numpy() - expected_L).max() < 1 / 128
    assert table["median"].between(0.25, 0.35).all()


def test_information_on_the_task(both: Golden) -> None:
    table = subjects.specialization(both.sums)
    task_T = both.subject_D[both.document_T]
    for row in table.to_dict("records"):
        selected_TN = both.selected(row["layer"])
        joint_SN = np.stack([selected_TN[task_T == s].sum(axis=0) for s in (0, 1)])
        assert row["mutual_information_bits"] == pytest.approx(bits(joint_SN))
        information = row["mutual_information_bits"] * math.log(2)
        assert row["mean_subject_kl"] == pytest.approx(row["pooled_kl"] + information, abs=1e-12)
        within = [
            math.log(EXPERTS) + (share_N @ np.log(np.where(share_N > 0, share_N, 1)))
            for share_N in joint_SN / joint_SN.sum(axis=1, keepdims=True)
        ]
        weight_S = joint_SN.sum(axis=1) / joint_SN.sum()
        assert row["mean_subject_kl"] == pytest.approx(weight_S @ within)
    assert table["mutual_information_bits"].gt(10 * table["null_95"]).all()
    assert table["p_value"].tolist() == [1 / 21] * 26
    # Documents, not tokens, are what was sampled: a null of tokens is several times too small.
    of_tokens = (EXPERTS - TOP_K) / (2 * TOP_K * both.tokens_D.sum() * math.log(2))
    assert table["null"].mean() > 3 * of_tokens


def test_information_of_every_expert(both: Golden) -> None:
    table = experts_table(both.sums)
    by_layer = table.groupby("layer")["information_bits"].sum()
    found = subjects.specialization(both.sums).set_index("layer")["mutual_information_bits"]
    assert by_layer.to_numpy() == pytest.approx(found.to_numpy())


def test_first_choices_of_the_next_layer(both: Golden) -> None:
    table = structure.transitions(both.sums)
    assert table["next_layer"].tolist() == list(LAYERS)[1:]
    assert not table["dense_between"].any()
    for row in table.to_dict("records"):
        flows_NN = np.zeros((EXPERTS, EXPERTS))
        np.add.at(flows_NN, (both.ids(row["layer"])[:, 0], both.ids(row["next_layer"])[:, 0]), 1)
        assert row["information_bits"] == pytest.approx(bits(flows_NN))


@pytest.mark.parametrize("layer", [1, 13, 26])
def test_positions(both: Golden, layer: int) -> None:
    table = structure.positions(both.sums).query("layer == @layer")
    position_T = np.concatenate([np.arange(tokens) for tokens in both.tokens_D.tolist()])
    assert table["first"].tolist() == [0, *(1 << bin for bin in range(len(table) - 1))]
    assert table["tokens"].sum() == len(position_T)
    for row in table.to_dict("records"):
        is_here_T = (position_T >= row["first"]) & (position_T <= row["last"])
        here_N, rest_N = (both.selected(layer)[part].sum(0) for part in (is_here_T, ~is_here_T))
        assert row["tokens"] == is_here_T.sum()
        assert (row["busiest"], row["max_load"]) == (
            here_N.argmax(),
            pytest.approx(here_N.max() * EXPERTS / here_N.sum()),
        )
        share_2N = np.stack([here_N / here_N.sum(), rest_N / rest_N.sum()])
        assert row["divergence"] == pytest.approx(bits(share_2N))
