"""Gate mass against loops over tokens, its null by simulation, and a real trace.

Shape suffixes: T tokens, K slots, L layers, N experts, S subjects.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from moe_probe.analysis.metrics.concentration import top_share
from moe_probe.analysis.metrics.imbalance import cv, max_vio, unseen
from moe_probe.analysis.metrics.weights import (
    conditional_weight,
    conditional_weight_sd,
    contribution,
    gate_cv_null,
    gate_share,
    mean_mass,
    weight_frequency_correlation,
)
from moe_probe.analysis.statistics.nulls import expected_indices

DATA = Path(__file__).parents[3] / "../shared/data/deepseek-v2-lite"
NUM_EXPERTS = 7
IDLE = 2


def make_tokens(seed: int) -> list[dict[int, float]]:
    """Return the weight of each selected expert, of tokens with one to three experts each."""
    rng = np.random.default_rng(seed)
    experts = [expert for expert in range(NUM_EXPERTS) if expert != IDLE]
    tokens = []
    for _ in range(40):
        chosen = rng.choice(experts, rng.integers(1, 4), replace=False).tolist()
        tokens.append(dict(zip(chosen, rng.random(len(chosen)).tolist(), strict=True)))
    return tokens


def sums(tokens: list[dict[int, float]]) -> dict[str, np.ndarray]:
    """Add up what an accumulator of weights keeps."""
    found = {name: np.zeros(NUM_EXPERTS) for name in ("counts", "weight", "square", "share")}
    for token in tokens:
        for expert, weight in token.items():
            found["counts"][expert] += 1
            found["weight"][expert] += weight
            found["square"][expert] += weight**2
            found["share"][expert] += weight / sum(token.values())
    return found


@pytest.mark.parametrize("seed", range(3))
def test_against_a_loop_over_tokens(seed: int) -> None:
    tokens = make_tokens(seed)
    s = sums(tokens)
    mass = sum(sum(token.values()) for token in tokens)
    assert mean_mass(np.array(mass), np.array(40)) == pytest.approx(mass / 40)
    assert gate_share(s["weight"]).sum() == pytest.approx(1)
    assert contribution(s["weight"], 40).sum() == pytest.approx(mass / 40)
    assert contribution(s["share"], 40).sum() == pytest.approx(1)
    for expert in range(NUM_EXPERTS):
        given = [token[expert] for token in tokens if expert in token]
        shares = [token[expert] / sum(token.values()) for token in tokens if expert in token]
        assert gate_share(s["weight"])[expert] == pytest.approx(sum(given) / mass)
        assert gate_share(s["share"])[expert] == pytest.approx(sum(shares) / 40)
        assert contribution(s["weight"], 40)[expert] == pytest.approx(sum(given) / 40)
        mean = sum(given) / len(given) if given else math.nan
        spread = float(np.std(given)) if given else math.nan
        found = conditional_weight(s["weight"], s["counts"])[expert]
        assert found == pytest.approx(mean, nan_ok=True)
        sd_N = conditional_weight_sd(s["weight"], s["square"], s["counts"])
        assert sd_N[expert] == pytest.approx(spread, abs=1e-7, nan_ok=True)


def test_idle_expert_and_empty_subject() -> None:
    s = sums(make_tokens(0))
    both_SN = {name: np.stack([values, 0 * values]) for name, values in s.items()}
    assert gate_share(s["weight"])[IDLE] == 0
    assert math.isnan(conditional_weight(s["weight"], s["counts"])[IDLE])
    assert gate_share(both_SN["weight"])[0] == pytest.approx(gate_share(s["weight"]))
    assert np.isnan(gate_share(both_SN["weight"])[1]).all()
    assert np.isnan(conditional_weight(both_SN["share"], both_SN["counts"])[1]).all()
    assert mean_mass(np.array([3.0, 0.0]), np.array([4, 0])) == pytest.approx(
        [0.75, math.nan], nan_ok=True
    )
    assert np.isnan(contribution(0 * s["weight"], 0)).all()
    assert math.isnan(gate_cv_null(0 * s["square"], 0.0, 0))


def test_one_renormalised_expert_says_what_counts_say() -> None:
    counts_N = np.array([3, 0, 9, 4])
    share_N = counts_N.astype(float)
    assert conditional_weight(share_N, counts_N)[[0, 2, 3]].tolist() == [1, 1, 1]
    assert cv(share_N) == cv(counts_N)
    null = gate_cv_null(share_N, 16.0, 16)
    assert null == pytest.approx(expected_indices(4, 1, 16).cv)


def test_mass_may_exceed_the_bounds_of_counts() -> None:
    # Two experts per token, and one of them has all the weight.
    mass_N = np.array([10.0, 0, 0, 0])
    assert max_vio(mass_N) == 3 > 4 / 2 - 1
    assert unseen(mass_N) == 3
    assert top_share(mass_N, 0.25) == 1


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_null_of_mass_holds_in_simulation(scale: float) -> None:
    rng = np.random.default_rng(1)
    num_experts, tokens, repetitions = 16, 60, 1500
    weight_K = np.array([0.6, 0.25, 0.1, 0.05]) * scale
    square_R = np.empty(repetitions)
    for number in range(repetitions):
        ids_TK = np.argsort(rng.random((tokens, num_experts), dtype=np.float32), axis=1)[:, :4]
        mass_N = np.bincount(ids_TK.ravel(), np.tile(weight_K, tokens), minlength=num_experts)
        square_R[number] = cv(mass_N) ** 2
    squares_N = np.full(num_experts, tokens * (weight_K**2).sum() / num_experts)
    null = gate_cv_null(squares_N, tokens * weight_K.sum(), tokens)
    error = square_R.std(ddof=1) / math.sqrt(repetitions)
    assert abs(square_R.mean() - null**2) <= 3 * error
    assert null > expected_indices(num_experts, 4, tokens).cv


def test_null_of_equal_weights_is_that_of_counts() -> None:
    squares_N = np.full(64, 100 * 6 * 0.5**2 / 64)
    assert gate_cv_null(squares_N, 100 * 6 * 0.5, 100) == pytest.approx(
        expected_indices(64, 6, 100).cv
    )


@pytest.mark.skipif(not DATA.is_dir(), reason="the DeepSeek-V2-Lite sample is not on this machine")
@pytest.mark.parametrize(
    ("task", "lowest", "highest"), [("intent", 0.34, 0.48), ("law", 0.35, 0.43)]
)
def test_mass_of_deepseek_v2_lite(task: str, lowest: float, highest: float) -> None:
    with np.load(DATA / f"{task}.npz") as arrays:
        ids_TLK, weights_TLK = arrays["experts"], arrays["weights"].astype(np.float64)
    tokens = len(ids_TLK)
    mass_TL = weights_TLK.sum(axis=2)
    mean_L = mean_mass(mass_TL.sum(axis=0), np.full(26, tokens))
    # The model does not renormalise: rows are plain softmax probabilities.
    assert [round(float(mean_L.min()), 2), round(float(mean_L.max()), 2)] == [lowest, highest]
    for layer in (0, 12, 25):
        ids_N, weight_N = ids_TLK[:, layer].ravel(), weights_TLK[:, layer].ravel()
        mass_N = np.bincount(ids_N, weight_N, minlength=64)
        squares_N = np.bincount(ids_N, weight_N**2, minlength=64)
        assert unseen(mass_N) == 0
        assert cv(mass_N) > 5 * gate_cv_null(squares_N, mass_N.sum(), tokens)


def test_correlation_of_weight_and_frequency() -> None:
    counts_N, weight_N = np.array([4, 0, 1, 2]), np.array([0.5, math.nan, 0.125, 0.25])
    assert weight_frequency_correlation(weight_N, counts_N) == pytest.approx(1)
    assert weight_frequency_correlation(-weight_N, counts_N) == pytest.approx(-1)
    assert math.isnan(weight_frequency_correlation(weight_N, np.array([4, 0, 0, 0])))
    assert math.isnan(weight_frequency_correlation(weight_N, np.array([4, 0, 4, 4])))
    rng = np.random.default_rng(0)
    found = [
        weight_frequency_correlation(rng.random(20), rng.permutation(20) + 1) for _ in range(2000)
    ]
    assert np.mean(found) == pytest.approx(0, abs=0.02)
    assert np.std(found) == pytest.approx(1 / math.sqrt(19), rel=0.05)
