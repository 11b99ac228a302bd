"""What must hold of every routing, to rounding: how indices, losses and bounds hang together.

Shape suffixes: T tokens, N experts, B batches, D devices; `k_T` is each token's number of experts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_probe.analysis.metrics import imbalance
from moe_probe.analysis.metrics.devices import device_loads
from moe_probe.analysis.metrics.frequency import (
    assignment_share,
    relative_load,
    selection_frequency,
)
from moe_probe.analysis.metrics.imbalance import (
    cv,
    effective_experts,
    entropy,
    gini,
    inverse_simpson,
    jain,
    kl_uniform,
    max_vio,
    min_vio,
    total_variation,
    unseen,
)
from moe_probe.analysis.statistics.nulls import bounds, uniform_chi_square

ROUNDING = 1e-12


@dataclass(frozen=True)
class Routing:
    """Which experts each token of one layer selects, and weights of any size on all experts."""

    is_selected_TN: np.ndarray
    weight_TN: np.ndarray

    @property
    def counts_N(self) -> np.ndarray:
        return np.asarray(self.is_selected_TN.sum(axis=0))

    @property
    def k_T(self) -> np.ndarray:
        return np.asarray(self.is_selected_TN.sum(axis=1))

    @property
    def experts(self) -> int:
        return int(self.is_selected_TN.shape[1])

    @property
    def tokens(self) -> int:
        return len(self.is_selected_TN)


def routed(seed: int, *, varies: bool) -> Routing:
    """Draw a layer, even to nearly collapsed, of k experts a token or, if it varies, 1 to k."""
    rng = np.random.default_rng(seed)
    tokens, experts = int(rng.integers(1, 60)), int(rng.integers(1, 40))
    top_k = int(rng.integers(1, experts + 1))
    bias_N = rng.normal(size=experts) * rng.choice([0, 0.3, 1, 10])
    weight_TN = np.exp(bias_N + rng.gumbel(size=(tokens, experts)))
    place_TN = np.argsort(np.argsort(-weight_TN, axis=1), axis=1)
    k_T = rng.integers(1, top_k + 1, tokens) if varies else np.full(tokens, top_k)
    return Routing(place_TN < k_T[:, None], weight_TN / weight_TN.sum(axis=1, keepdims=True))


SEEDS = st.integers(0, 2**32)
FIXED = SEEDS.map(lambda seed: routed(seed, varies=False))
ANY = st.builds(lambda seed, varies: routed(seed, varies=varies), SEEDS, st.booleans())
many = settings(deadline=None, max_examples=150)


@many
@given(FIXED)
def test_hard_bounds_of_distinct_top_k(routing: Routing) -> None:
    """All of them, of every number of experts per token."""
    counts_N, k, n = routing.counts_N, int(routing.k_T[0]), routing.experts
    assert assignment_share(counts_N).max() <= 1 / k + ROUNDING
    assert relative_load(counts_N).max() <= n / k + ROUNDING
    assert selection_frequency(counts_N, routing.tokens).max() <= 1
    assert -ROUNDING <= max_vio(counts_N) <= n / k - 1 + ROUNDING
    assert 0 <= min_vio(counts_N) <= 1
    assert cv(counts_N) ** 2 <= n / k - 1 + ROUNDING
    assert math.log(k) - ROUNDING <= entropy(counts_N) <= math.log(n) + ROUNDING
    assert k - 1e-11 <= inverse_simpson(counts_N) <= effective_experts(counts_N) + 1e-11
    assert effective_experts(counts_N) <= n + 1e-11
    assert -ROUNDING <= gini(counts_N) <= 1 - k / n + ROUNDING
    assert k / n - ROUNDING <= jain(counts_N) <= 1 + ROUNDING
    assert 0 <= kl_uniform(counts_N) <= math.log(n / k) + ROUNDING
    assert -ROUNDING <= total_variation(counts_N) <= 1 - k / n + ROUNDING
    assert 0 <= unseen(counts_N) <= n - k


@many
@given(FIXED)
def test_bounds_are_reached_by_k_experts_that_take_all(routing: Routing) -> None:
    k, n = int(routing.k_T[0]), routing.experts
    counts_N = np.repeat([routing.tokens, 0], [k, n - k])
    for name, most in vars(bounds(n, k)).items():
        assert getattr(imbalance, name)(counts_N) == pytest.approx(most, abs=1e-11), name


@many
@given(ANY)
def test_bounds_where_tokens_differ_in_number_of_experts(routing: Routing) -> None:
    """Those of the fewest experts of a token hold for all."""
    counts_N, n = routing.counts_N, routing.experts
    for name, most in vars(bounds(n, int(routing.k_T.min()))).items():
        value = float(getattr(imbalance, name)(counts_N))
        if name in ("entropy", "effective_experts"):
            assert value >= most - 1e-11, name
        else:
            assert -ROUNDING <= value <= most + ROUNDING, name


@many
@given(ANY)
def test_sums_and_means(routing: Routing) -> None:
    counts_N, k_T = routing.counts_N, routing.k_T
    frequency_N = selection_frequency(counts_N, routing.tokens)
    assert frequency_N.sum() == pytest.approx(k_T.mean(), abs=ROUNDING * routing.experts)
    assert assignment_share(counts_N).sum() == pytest.approx(1, abs=ROUNDING)
    assert relative_load(counts_N).mean() == pytest.approx(1, abs=ROUNDING)
    pairs_NN = routing.is_selected_TN.T.astype(int) @ routing.is_selected_TN
    assert pairs_NN[np.triu_indices(routing.experts, 1)].sum() == (k_T * (k_T - 1)).sum() // 2


@many
@given(ANY)
def test_indices_that_say_the_same(routing: Routing) -> None:
    counts_N, n = routing.counts_N, routing.experts
    square = float(cv(counts_N)) ** 2
    share_N, sorted_N = assignment_share(counts_N), np.sort(assignment_share(counts_N))
    assert max_vio(counts_N) == pytest.approx(relative_load(counts_N).max() - 1, abs=ROUNDING)
    assert jain(counts_N) == pytest.approx(1 / (1 + square), abs=ROUNDING)
    assert inverse_simpson(counts_N) == pytest.approx(n / (1 + square), rel=ROUNDING)
    assert kl_uniform(counts_N) == pytest.approx(math.log(n) - entropy(counts_N), abs=ROUNDING)
    assert effective_experts(counts_N) == pytest.approx(math.exp(entropy(counts_N)), rel=ROUNDING)
    above = np.maximum(share_N - 1 / n, 0).sum()
    assert total_variation(counts_N) == pytest.approx(above, abs=ROUNDING)
    lorenz = (np.cumsum(sorted_N) - sorted_N / 2).sum() / n
    assert gini(counts_N) == pytest.approx(1 - 2 * lorenz, abs=ROUNDING)


@many
@given(ANY)
def test_even_devices_are_at_least_as_even_as_their_experts(routing: Routing) -> None:
    n = routing.experts
    for devices in (d for d in range(1, n + 1) if n % d == 0):
        load_D = device_loads(routing.counts_N, devices)
        assert load_D.sum() == routing.counts_N.sum()
        for index in (max_vio, cv, gini, kl_uniform, total_variation):
            assert index(load_D) <= index(routing.counts_N) + ROUNDING, index


def balance_loss(counts_N: np.ndarray, probability_N: np.ndarray) -> float:
    """N sum f P of Switch Transformers (2101.03961) and sum f P of DeepSeekMoE (2401.06066), whose
    f is N times as large: f the share of selections, P the mean probability, each summing to 1."""
    share_N, mean_N = (values / values.sum() for values in (counts_N, probability_N))
    return len(counts_N) * math.fsum(share_N * mean_N)


@many
@given(ANY)
def test_balance_loss_is_one_and_a_covariance(routing: Routing) -> None:
    """Loss - 1 = N^2 Cov(f, P), so flat probabilities hide any imbalance of f."""
    counts_N, n = routing.counts_N, routing.experts
    mass_N = routing.weight_TN.sum(axis=0)
    share_N, mean_N = counts_N / counts_N.sum(), mass_N / mass_N.sum()
    loss = balance_loss(counts_N, mass_N)
    covariance = float(((share_N - share_N.mean()) * (mean_N - mean_N.mean())).mean())
    assert loss - 1 == pytest.approx(n**2 * covariance, abs=ROUNDING)
    assert abs(loss - 1) <= cv(counts_N) * cv(mass_N) + ROUNDING
    assert balance_loss(counts_N, np.ones(n)) == pytest.approx(1, abs=ROUNDING)
    assert loss <= relative_load(counts_N).max() + ROUNDING


@many
@given(FIXED)
def test_balance_loss_of_hard_decisions(routing: Routing) -> None:
    """With P = f it is 1 + CV^2, one over Jain's index, and the chi-square statistic of N0."""
    counts_N, n, k = routing.counts_N, routing.experts, int(routing.k_T[0])
    loss = balance_loss(counts_N, counts_N)
    assert loss == pytest.approx(1 + float(cv(counts_N)) ** 2, rel=ROUNDING)
    assert loss == pytest.approx(1 / float(jain(counts_N)), rel=ROUNDING)
    assert loss == pytest.approx(n / float(inverse_simpson(counts_N)), rel=ROUNDING)
    if n > k:
        selections = routing.tokens * k
        chi_square = selections * (loss - 1) * (n - 1) / (n - k)
        found, _ = uniform_chi_square(counts_N, selections, selections * k)
        assert found == pytest.approx(chi_square, rel=1e-11, abs=1e-9)


@many
@given(FIXED, st.integers(1, 8))
def test_batches_add_the_variance_between_them(routing: Routing, size: int) -> None:
    """Mean loss of batches - that of all = N sum Cov(f, P) between batches: specialisation."""
    batches = routing.tokens // size
    if not batches:
        return
    used = slice(batches * size)
    counts_BN = routing.is_selected_TN[used].reshape(batches, size, -1).sum(axis=1)
    mass_BN = routing.weight_TN[used].reshape(batches, size, -1).sum(axis=1)
    pairs = zip(counts_BN, mass_BN, strict=True)
    mean = np.mean([balance_loss(counts_N, mass_N) for counts_N, mass_N in pairs])
    share_BN, mean_BN = assignment_share(counts_BN), assignment_share(mass_BN)
    between_N = (share_BN * mean_BN).mean(axis=0) - share_BN.mean(axis=0) * mean_BN.mean(axis=0)
    whole = balance_loss(counts_BN.sum(axis=0), mass_BN.sum(axis=0))
    assert mean - whole == pytest.approx(routing.experts * between_N.sum(), abs=ROUNDING)
    # Of hard decisions: CV^2 of small batches exceeds that of all by what differs between them.
    excess = float((cv(counts_BN) ** 2).mean() - cv(counts_BN.sum(axis=0)) ** 2)
    variance = routing.experts * float(share_BN.var(axis=0).sum())
    assert excess == pytest.approx(variance, abs=ROUNDING)
