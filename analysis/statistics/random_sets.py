"""What sets of experts do by chance: overlap, co-occurrence, coverage, and how far they diverge.

N0 draws each token's k of N experts uniformly; N1 draws them with the experts' own frequencies p
(summing to k), independently from token to token. Exact unless a docstring says otherwise.

Notation: N num_experts, k top_k, S set of a token. Shape suffixes: N experts of a layer, X numbers
of tokens, J sizes 0 to k of a set, I sizes of a second one; leading axes, if any, are kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

_LN2 = math.log(2)
_FITS = 100
_TOLERANCE = 1e-9


def any_shared(num_experts: int, top_k: int) -> float:
    """Return the chance that two tokens share an expert under N0: 1 - C(N-k, k) / C(N, k)."""
    return 1 - math.comb(num_experts - top_k, top_k) / math.comb(num_experts, top_k)


def own_rate_any(frequency_N: np.ndarray, top_k: int) -> np.ndarray:
    """Return the chance that two tokens share an expert under N1, for sets of k of most entropy.

    Such sets have P(S) proportional to the product of weights w over S (conditional Bernoulli
    sampling), with w fitted so that expert e is drawn with p_e: nothing but the frequencies is
    assumed. Then P(none shared) = [x^k y^k] prod (1 + w x + w y) / ([x^k] prod (1 + w x))^2. With
    equal p this is `any_shared`. Real sets, whose experts come together, share less often than
    this even from unrelated tokens.

    Args:
        frequency_N: p, [..., N], summing to k. All layers of a model in one call is fastest.
        top_k: k, the same for every token.

    Returns:
        float64 [...] in [0, 1], to 1e-6, or 1e-3 where an expert is in all but every token; NaN
        where a frequency is, or is above 1. Source of the fit: Chen, Dempster and Liu (1994).
    """
    weight_N = _fit_weights(frequency_N, top_k)
    pairs_JI = np.zeros((*frequency_N.shape[:-1], top_k + 1, top_k + 1))
    pairs_JI[..., 0, 0] = 1
    for expert in range(frequency_N.shape[-1]):
        added_JI = weight_N[..., expert, None, None] * pairs_JI
        pairs_JI[..., 1:, :] += added_JI[..., :-1, :]
        pairs_JI[..., :, 1:] += added_JI[..., :, :-1]
    total = _symmetric_sums(weight_N, top_k)[..., -1, top_k]
    return np.asarray(1 - pairs_JI[..., top_k, top_k] / total**2)


def coactivation(num_experts: int, top_k: float) -> float:
    """Return P(j selected | i selected) under N0: (k - 1) / (N - 1); NaN where k is 1."""
    return (top_k - 1) / (num_experts - 1) if top_k > 1 else math.nan


def devices_hit(num_experts: int, top_k: int, devices: int) -> float:
    """Return on how many of D devices the experts of a token are under N0.

    D (1 - C(N - N/D, k) / C(N, k)) with equal shares of experts; D must divide N.
    """
    elsewhere = num_experts - num_experts // devices
    return devices * (1 - math.comb(elsewhere, top_k) / math.comb(num_experts, top_k))


def own_rate_devices_hit(
    frequency_N: np.ndarray, top_k: int, devices_X: Sequence[int]
) -> np.ndarray:
    """Return on how many of D devices a token's experts are under N1, for sets of most entropy.

    Sets as in `own_rate_any`: nothing but the frequencies is assumed. A device without the token
    has P = [x^k] prod over the others (1 + w x) / [x^k] prod (1 + w x). With equal p this is
    `devices_hit`.

    Args:
        frequency_N: p, [..., N], summing to k. All layers of a model in one call is fastest.
        top_k: k, the same for every token.
        devices_X: Numbers D of devices; each has an equal share of experts, in order.

    Returns:
        float64 [..., X] in [1, min(D, k)]; NaN where a frequency is.
    """
    weight_N = _fit_weights(frequency_N, top_k)
    total = _symmetric_sums(weight_N, top_k)[..., -1, top_k]
    hit_X = np.zeros((*frequency_N.shape[:-1], len(devices_X)))
    for number, devices in enumerate(devices_X):
        share = frequency_N.shape[-1] // devices
        for device in range(devices):
            others_N = np.delete(weight_N, slice(device * share, (device + 1) * share), axis=-1)
            hit_X[..., number] += 1 - _symmetric_sums(others_N, top_k)[..., -1, top_k] / total
    return hit_X


def experts_seen(num_experts: int, top_k: int, tokens: np.ndarray | int) -> np.ndarray:
    """Return how many experts some token selects under N0: N (1 - (1 - k/N)^T), [...].

    The working set of a window of T tokens, and the coverage after T tokens.
    """
    return np.asarray(num_experts * (1 - (1 - top_k / num_experts) ** np.asarray(tokens)))


def own_rate_seen(frequency_N: np.ndarray, tokens_X: np.ndarray) -> np.ndarray:
    """Return how many experts some token selects under N1: the sum of 1 - (1 - p)^T, [..., X]."""
    never_XN = (1 - np.minimum(frequency_N, 1)[..., None, :]) ** tokens_X[:, None]
    return np.asarray((1 - never_XN).sum(axis=-1))


def divergence_bias(
    num_experts: int, top_k: float, first: np.ndarray | int, second: np.ndarray | int
) -> np.ndarray:
    """Return the bias of the equal-weight Jensen-Shannon divergence under N0, in bits.

    (N-k) / (8 ln 2) (1/A1 + 1/A2), with A1 and A2 the selections of the two samples; first order.
    Multiply by the design effect.
    """
    return np.asarray((num_experts - top_k) / (8 * _LN2) * (1 / np.asarray(first) + 1 / second))


def _fit_weights(frequency_N: np.ndarray, top_k: int) -> np.ndarray:
    """Find the weights whose sets of k select each expert with its frequency; NaN if none do."""
    is_possible_1 = (frequency_N <= 1).all(axis=-1, keepdims=True)
    weight_N = np.where(is_possible_1, np.asarray(frequency_N, np.float64), np.nan)
    for _ in range(_FITS):
        # All sets of k that have an expert: k - 1 others, from those before and those after it.
        before_NJ = _symmetric_sums(weight_N, top_k)
        after_NJ = _symmetric_sums(weight_N[..., ::-1], top_k)[..., ::-1, :]
        others_N = (before_NJ[..., :-1, :top_k] * after_NJ[..., 1:, :top_k][..., ::-1]).sum(axis=-1)
        drawn_N = weight_N * others_N / before_NJ[..., -1:, top_k]
        if not (np.abs(drawn_N - frequency_N) > _TOLERANCE).any():
            break
        ratio_N = np.divide(frequency_N, drawn_N, out=np.zeros_like(weight_N), where=drawn_N > 0)
        weight_N = weight_N * ratio_N
        # Any common factor gives the same sets; this one keeps the sums near 1.
        weight_N *= top_k / weight_N.sum(axis=-1, keepdims=True)
    return weight_N


def _symmetric_sums(weight_N: np.ndarray, top_k: int) -> np.ndarray:
    """Sum the products of weights over all sets of j among the first experts: [..., N+1, J]."""
    num_experts = weight_N.shape[-1]
    sums_NJ = np.zeros((*weight_N.shape[:-1], num_experts + 1, top_k + 1))
    sums_NJ[..., 0, 0] = 1
    for expert in range(num_experts):
        sums_NJ[..., expert + 1, :] = sums_NJ[..., expert, :]
        sums_NJ[..., expert + 1, 1:] += weight_N[..., expert, None] * sums_NJ[..., expert, :-1]
    return sums_NJ
