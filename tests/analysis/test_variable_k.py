"""Nulls of layers whose tokens select different numbers of experts, against fair routing of such.

Shape suffixes: T tokens, N experts of a layer, K slots, R repetitions, B batches, D devices.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe_probe import TraceWriter
from moe_probe.analysis.accumulators.counts import LayerCounts
from moe_probe.analysis.findings.headline import load_limits
from moe_probe.analysis.metrics import imbalance
from moe_probe.analysis.metrics.decomposition import batch_imbalance
from moe_probe.analysis.metrics.devices import device_null
from moe_probe.analysis.metrics.divergence import divergence_null, jensen_shannon
from moe_probe.analysis.results import Analysis, analyse
from moe_probe.analysis.statistics.nulls import expected_indices
from moe_probe.analysis.statistics.set_sizes import SetSizes
from moe_probe.analysis.tables.layers import INDICES
from moe_probe.trace import LayerSpec

SLOTS, DOCUMENTS, LENGTH = 6, 60, 50
TOKENS = DOCUMENTS * LENGTH
LAYERS = [
    LayerSpec(layer=number, num_experts=num_experts, top_k=SLOTS, empty_slots=True)
    for number, num_experts in ((2, 8), (5, 64))
]
WINDOWS = (10, 25)


def sizes_T(tokens: int, rng: np.random.Generator) -> np.ndarray:
    """k_t of some tokens: mostly 1, often none or all."""
    return rng.choice([0, 1, 1, 1, 2, SLOTS], tokens)


def member_TN(k_T: np.ndarray, num_experts: int, rng: np.random.Generator) -> np.ndarray:
    """Which experts each token selects, all sets of its size alike: bool."""
    score_TN = rng.random((len(k_T), num_experts), dtype=np.float32)
    last_T1 = np.maximum(k_T, 1)[:, None] - 1
    worst_T1 = np.take_along_axis(np.sort(score_TN, axis=1), last_T1, axis=1)
    return np.asarray((score_TN <= worst_T1) & (k_T > 0)[:, None])


def longest_runs(member_TN: np.ndarray) -> np.ndarray:
    """The longest idle run of each expert."""
    hits = (np.flatnonzero(column_T) for column_T in member_TN.T)
    edges = (np.concatenate([[-1], hit, [len(member_TN)]]) for hit in hits)
    return np.array([np.diff(edge).max() - 1 for edge in edges])


def assert_mean(values_R: Any, expected: float, what: object = "") -> None:
    """That a simulation has the mean that is expected, within three standard errors."""
    values_R = np.asarray(values_R, np.float64)
    error = values_R.std(ddof=1) / np.sqrt(len(values_R))
    assert abs(values_R.mean() - expected) <= 3 * error + 1e-12, (what, values_R.mean(), expected)


@pytest.fixture(scope="module")
def routed() -> dict[int, np.ndarray]:
    """Ids [T, K] of one fair trace; -1 is an empty slot, and filled ones stand anywhere."""
    rng = np.random.default_rng(5)
    ids = {}
    for spec in LAYERS:
        k_T = sizes_T(TOKENS, rng)
        order_TN = rng.random((TOKENS, spec.num_experts)).argsort(axis=1)[:, :SLOTS]
        ids_TK = np.where(np.arange(SLOTS) < k_T[:, None], order_TN, -1)
        ids[spec.layer] = rng.permuted(ids_TK, axis=1)
    return ids


def write(path: Path, ids: dict[int, np.ndarray], **options: Any) -> Path:
    with TraceWriter(path, layers=LAYERS, **options) as writer:
        for document in range(DOCUMENTS):
            own = slice(document * LENGTH, (document + 1) * LENGTH)
            rows = [ids[spec.layer][own] for spec in LAYERS]
            writer.add(rows, task="t", subject="ab"[document % 2], doc_id=document)
    return path


@pytest.fixture(scope="module")
def fair(tmp_path_factory: Any, routed: dict[int, np.ndarray]) -> Analysis:
    path = write(tmp_path_factory.mktemp("fair") / "trace", routed)
    return analyse(path, windows=WINDOWS, shuffles=3, replicates=60, permutations=39)


def test_set_sizes_of_a_trace(fair: Analysis, routed: dict[int, np.ndarray]) -> None:
    for layer, ids_TK in routed.items():
        k_T = (ids_TK >= 0).sum(axis=1)
        found = fair.sums.set_sizes(layer)
        assert found.mean_k == k_T.mean()
        assert found.null_k == pytest.approx((k_T**2).sum() / k_T.sum(), rel=1e-12)
        tokens = found.null_tokens(TOKENS)
        assert tokens == pytest.approx(k_T.sum() ** 2 / (k_T**2).sum(), rel=1e-12)


def test_set_sizes_without_pairs() -> None:
    spec = LayerSpec(layer=0, num_experts=4, top_k=3, empty_slots=True)
    some = LayerCounts(spec, np.array([5, 4, 3, 0]), 8)
    assert some.set_sizes() == SetSizes(1.5, 1.5)
    full = LayerCounts(spec, np.array([4, 4, 4, 0]), 4)
    assert full.set_sizes() == SetSizes(3, 3)
    assert full.set_sizes().null_tokens(0.1) == 0.1
    # Nothing has no chance to compare with.
    assert LayerCounts(spec, np.zeros(4, np.int64), 8).set_sizes().null_tokens(8) == 0
    assert LayerCounts(spec, np.zeros(4, np.int64), 0).set_sizes() == SetSizes(3, 3)


def test_nulls_of_layers(fair: Analysis, routed: dict[int, np.ndarray]) -> None:
    rng = np.random.default_rng(6)
    for spec in LAYERS:
        row: Any = fair.layers.set_index("layer").loc[spec.layer]
        k_T = (routed[spec.layer] >= 0).sum(axis=1)
        counts_R2N = np.array(
            [
                member_TN(k_T, spec.num_experts, rng).reshape(2, -1, spec.num_experts).sum(axis=1)
                for _ in range(150)
            ]
        )
        counts_RN = counts_R2N.sum(axis=1)
        for name in INDICES:
            values_R, null = getattr(imbalance, name)(counts_RN), row[f"{name}_null"]
            if name == "cv":  # what is exact is the expectation of its square
                values_R, null = values_R**2, null**2
            assert_mean(values_R, null, name)
        # Mean k alone would not do where k is no small part of N.
        if spec.num_experts == 8:
            alike = expected_indices(8, k_T.mean(), TOKENS).cv ** 2
            assert alike > 1.2 * row["cv_null"] ** 2
        state = fair.sums.layers[spec.layer]
        null = row["split_half_divergence_null"] / state.halves_deff
        assert_mean([jensen_shannon(c_2N)[0, 1] for c_2N in counts_R2N], null, "halves")


def test_few_tokens_leave_experts_unseen() -> None:
    rng = np.random.default_rng(7)
    k_T = np.repeat([0, 1, 2, SLOTS], 8)
    sizes = SetSizes(k_T.mean(), (k_T**2).sum() / k_T.sum())
    unseen_R = [(~member_TN(k_T, 64, rng).any(axis=0)).sum() for _ in range(2000)]
    assert_mean(unseen_R, expected_indices(64, sizes.null_k, sizes.null_tokens(32)).unseen)


def test_nulls_of_batches() -> None:
    rng = np.random.default_rng(8)
    k_T = sizes_T(256 * 300, rng)
    sizes = SetSizes(k_T.mean(), (k_T**2).sum() / k_T.sum())
    loads_BN = member_TN(k_T, 16, rng).reshape(300, 256, 16).sum(axis=1)
    ratio_B = loads_BN.max(axis=1) / loads_BN.mean(axis=1)
    sums_5 = [len(ratio_B), ratio_B.sum(), (ratio_B**2).sum(), imbalance.cv(loads_BN).sum()]
    sums_5.append((loads_BN.sum(axis=1) ** -0.5).sum())
    (row,) = batch_imbalance(np.array([sums_5]), (256,), 16, sizes).to_dict("records")
    assert_mean(ratio_B - 1, row["max_vio_null"])
    assert_mean(imbalance.cv(loads_BN) ** 2, row["cv_null"] ** 2)


def test_batches_of_a_trace(fair: Analysis) -> None:
    table = fair.table("batches").set_index(["layer", "tokens_per_batch"])
    for spec in LAYERS:
        sizes = fair.sums.set_sizes(spec.layer)
        null = expected_indices(spec.num_experts, sizes.null_k, sizes.null_tokens(256))
        row: Any = table.loc[(spec.layer, 256)]
        # Of as many selections: batches differ a little in how many they have.
        expected = (null.max_vio, null.cv)
        assert (row["max_vio_null"], row["cv_null"]) == pytest.approx(expected, rel=0.01)
        assert row["cv"] == pytest.approx(row["cv_null"], rel=0.3)


def test_nulls_of_devices_and_divergence() -> None:
    rng = np.random.default_rng(9)
    k_T = sizes_T(1200, rng)
    sizes = SetSizes(k_T.mean(), (k_T**2).sum() / k_T.sum())
    counts_R3N = np.array(
        [member_TN(k_T, 16, rng).reshape(3, 400, 16).sum(axis=1) for _ in range(300)]
    )
    loads_RD = counts_R3N.sum(axis=1).reshape(-1, 4, 4).sum(axis=2)
    null = device_null(16, sizes.null_k, 4, sizes.null_tokens(1200))
    assert_mean(imbalance.cv(loads_RD) ** 2, null.cv**2)
    assert_mean(imbalance.max_vio(loads_RD), null.max_vio)
    first_R = [jensen_shannon(counts_3N)[0, 1] for counts_3N in counts_R3N]
    assigned_3 = counts_R3N[0].sum(axis=1)
    assert_mean(first_R, divergence_null(assigned_3, 16, sizes.null_k)[0, 1])


def test_fair_idle_runs(fair: Analysis, routed: dict[int, np.ndarray]) -> None:
    """Of tokens in any order: every token then has the same chance to leave an expert idle."""
    rng = np.random.default_rng(10)
    windows = fair.idle_windows.groupby(["layer", "window"])["expected_runs_fair"].mean()
    experts = fair.experts.set_index(["layer", "expert"])
    seen = fair.table("coverage").set_index(["layer", "tokens"])["fair"]
    for spec in LAYERS:
        k_T = (routed[spec.layer] >= 0).sum(axis=1)
        runs: dict[int, list[float]] = {window: [] for window in WINDOWS}
        longest, first = [], []
        for _ in range(100):
            used_TN = member_TN(rng.permutation(k_T), spec.num_experts, rng)
            for window in WINDOWS:
                # A stretch of W idle tokens that begins a run: after a selection, or first.
                idle_TN = np.lib.stride_tricks.sliding_window_view(~used_TN, window, axis=0)
                begins_TN = np.concatenate([np.ones_like(used_TN[:1]), used_TN[:-window]])
                runs[window].append((idle_TN.all(axis=-1) & begins_TN).sum(axis=0).mean())
            longest.append(longest_runs(used_TN))
            first.append(used_TN[:10].any(axis=0).sum())
        for window in WINDOWS:
            assert_mean(runs[window], windows[spec.layer, window], window)
        row: Any = experts.loc[(spec.layer, 3)]
        longer_RN = np.array(longest) >= row["longest_idle_shuffled"]
        assert_mean(longer_RN.mean(axis=1), row["p_fair"])
        assert_mean(first, seen[spec.layer, 10])


def test_limits_hold_fair_routing(fair: Analysis) -> None:
    low_E, high_E = load_limits(fair.experts, fair.layers)
    assert fair.experts["relative_load"].between(low_E, high_E, inclusive="neither").all()
    # And are, for most, no wider than documents, which are few, make them.
    layers = fair.layers.set_index("layer").loc[fair.experts["layer"]]
    assert np.median((high_E - 1) / layers["cv_null"]) < 8


def test_fair_routing_has_no_finding(fair: Analysis) -> None:
    said = fair.headline
    assert said.uneven.startswith("No layer is loaded more unevenly than chance explains")
    assert "no less than chance may leave to one of 72" in said.least_used
    # Three selections of what a fair share is, by tokens that are all but independent.
    three_L = 3 * fair.layers["num_experts"] / fair.layers["assignments"]
    assert (fair.layers["certifiable_load"] / three_L).between(1, 1.5).all()


def test_windows_tell_only_what_chance_does_not(tmp_path: Path) -> None:
    """Tokens of one expert each out of 64, in eight slots: 1,000 in a row may well lack one."""
    specs = [LayerSpec(layer=0, num_experts=64, top_k=8, empty_slots=True)]
    rng = np.random.default_rng(11)
    with TraceWriter(tmp_path / "trace", layers=specs) as writer:
        for document in range(40):
            ids_TK = np.full((150, 8), -1)
            ids_TK[:, 0] = rng.integers(0, 64, 150)
            writer.add([ids_TK], task="t", subject="ab"[document % 2], doc_id=document)
    options: Any = {"shuffles": 3, "replicates": 40, "permutations": 19}
    found = analyse(tmp_path / "trace", windows=(100, 200, 400, 1600), **options)
    # By k = 8 experts a token, 400 tokens would tell; here hundreds of them lack some expert.
    assert (found.experts["longest_idle"] >= 400).any()
    assert found.headline.idle.startswith("No expert idles for 1,600 tokens in a row")
    assert found.headline.uneven.startswith("No layer is loaded more unevenly")
