"""Group K: how sure the router is, from histograms with fixed bins.

Histograms of all parts of a trace add up, and tell any quantile to the width of a bin. There is no
value that chance gives: it depends on the scale of the scores, which training sets; of margins
`margin_null` is for scores of scale 1. The mean of a token's total weight (K4) is
`weights.mean_mass`.

Shape suffixes: T tokens, K slots, Q quantities, H bins, E edges = H + 1, X thresholds; 3 is number,
sum and sum of squares.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from moe_probe.analysis.statistics.undefined import positive

BINS = 128
"""H."""
EDGES: dict[str, np.ndarray] = {
    "entropy": np.linspace(0, 1, BINS + 1),
    "margin": np.concatenate([[0], 2.0 ** ((np.arange(BINS) - 95) / 4)]),
    "logsumexp": np.linspace(-32, 96, BINS + 1),
    "top_share": np.linspace(0, 1, BINS + 1),
    "effective_k": np.linspace(0, 1, BINS + 1),
}
"""Edges [E] of each quantity's bins; the outer bins also hold what lies beyond.

entropy      K1, of the router's distribution over all N experts, as a part of ln N
margin       K5, k-th less (k+1)-th selection score, in units of the score: 0, then quarters of an
             octave from 2^-23.75 to 2^8, so that a quantile is known to 19 %
logsumexp    K9, of the router's logits
top_share    K3, the largest weight over the sum of the token's weights
effective_k  K2, exp of the entropy (nats) of the token's weights over their sum, as a part of the
             way from 1 to k
"""
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def weight_shares(weights_TK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the top-1 share of weight (K3) and the effective k (K2) of each token.

    Args:
        weights_TK: Weights of the selected experts, not negative, of any float type; 0 in empty
            slots.

    Returns:
        Two float32 [T], in [1/k, 1] and [1, k]; NaN where a token has no weight.
    """
    weights_TK = weights_TK.astype(np.float32)
    mass_T1 = weights_TK.sum(axis=1, keepdims=True)
    share_TK = weights_TK / np.where(mass_T1 > 0, mass_T1, np.nan)
    log_TK = np.log(share_TK, where=share_TK > 0, out=np.zeros_like(share_TK))
    return share_TK.max(axis=1), np.exp(-(share_TK * log_TK).sum(axis=1))


def histogram(
    quantity: str, values_T: np.ndarray, weight_T: np.ndarray, num_experts: int, top_k: int
) -> np.ndarray:
    """Count values by the bins of `EDGES`.

    Args:
        quantity: A key of `EDGES`.
        values_T: In the quantity's own unit (entropy in nats); NaN is left out.
        weight_T: How often each token counts: int64.
        num_experts: N.
        top_k: k.

    Returns:
        int64 [H].
    """
    is_known_T = ~np.isnan(values_T)
    low, high = _range(quantity, num_experts, top_k)
    values_T = values_T[is_known_T].astype(np.float64)
    if quantity == "margin":
        # Smaller margins than the second edge, and 0, fall into bin 0.
        place_T = np.floor(4 * np.log2(np.maximum(values_T, 2.0**-24))) + 96
    else:
        place_T = np.floor((values_T - low) * (BINS / (high - low)))
    bin_T = np.clip(place_T, 0, BINS - 1).astype(np.intp)
    return np.bincount(bin_T, weight_T[is_known_T], BINS).astype(np.int64)


def moments(values_T: np.ndarray, weight_T: np.ndarray) -> np.ndarray:
    """Return number, sum and sum of squares of the values that are finite: float64 [3]."""
    is_known_T = np.isfinite(values_T)
    values_T, weight_T = values_T[is_known_T].astype(np.float64), weight_T[is_known_T]
    weighted_T = values_T * weight_T
    return np.array([weight_T.sum(), weighted_T.sum(), values_T @ weighted_T])


def edges(quantity: str, num_experts: int, top_k: int) -> np.ndarray:
    """Return the edges of a quantity's bins in its own unit: float64 [E]."""
    if quantity in ("entropy", "effective_k"):
        low, high = _range(quantity, num_experts, top_k)
        return np.asarray(low + EDGES[quantity] * (high - low))
    return EDGES[quantity]


def quantiles(bins_H: np.ndarray, edges_E: np.ndarray, shares: tuple[float, ...]) -> np.ndarray:
    """Return quantiles of a histogram, linear inside a bin: exact to the width of one bin.

    Returns:
        float64, one per share; NaN where the histogram is empty.
    """
    below_H = np.cumsum(bins_H)
    if below_H[-1] == 0:
        return np.full(len(shares), np.nan)
    wanted = np.asarray(shares) * below_H[-1]
    place = np.searchsorted(below_H, wanted)
    part = (wanted - (below_H - bins_H)[place]) / bins_H[place]
    return np.asarray(edges_E[place] + part * np.diff(edges_E)[place])


def confidence_table(
    bins_QH: np.ndarray, moments_Q3: np.ndarray, num_experts: int, top_k: int
) -> pd.DataFrame:
    """Tabulate quantiles of every quantity of one layer.

    Args:
        bins_QH: int64 [Q, H], quantities in the order of `EDGES`.
        moments_Q3: float64 [Q, 3], their `moments`.
        num_experts: N.
        top_k: k.

    Returns:
        quantity  a key of `EDGES`
        tokens  that have a value
        q05, q25, median, q75, q95  in the quantity's own unit; null without tokens
        lowest, highest  what the quantity can be; null where nothing bounds it
        mean, mean_square  of the finite values, exact; null without any. mean_square of logsumexp
            is the z-loss (K9; ST-MoE, 2202.08906)
        gaussian_null  of margin alone: the mean that independent Gaussian scores with sd 1 in each
            token give, `margin_null`. The mean over it is the sd that such scores would have:
            margins of other N and k compare in it
    """
    rows = []
    means_Q = moments_Q3[:, 1:] / positive(moments_Q3[:, :1])
    for quantity, bins_H, (mean, square) in zip(EDGES, bins_QH, means_Q.tolist(), strict=True):
        at = quantiles(bins_H, edges(quantity, num_experts, top_k), QUANTILES)
        row = {"quantity": quantity, "tokens": int(bins_H.sum())}
        row |= zip(("q05", "q25", "median", "q75", "q95"), at.tolist(), strict=True)
        row |= _bounds(quantity, num_experts, top_k) | {"mean": mean, "mean_square": square}
        null = margin_null(num_experts, top_k) if quantity == "margin" else math.nan
        rows.append(row | {"gaussian_null": null})
    return pd.DataFrame(rows)


def margin_curve(bins_QH: np.ndarray, moments_Q3: np.ndarray) -> pd.DataFrame:
    """Tabulate the share of tokens whose margin is below epsilon (K5).

    Scores that move by epsilon / 2, as by quantisation or another order of sums, can change the
    experts of these tokens and of no others.

    Args:
        bins_QH: int64 [Q, H], as for `confidence_table`.
        moments_Q3: float64 [Q, 3].

    Returns:
        epsilon  2^-16 to 2^4, in the unit of the scores
        share  of the tokens whose margin is known, exact
        share_null  1 - exp(-epsilon / mean margin): neighbours among many independent scores of
            one scale; share far above it at small epsilon are ties, or layers with tokens that the
            router cannot decide
        No rows where no margin is known.
    """
    place = list(EDGES).index("margin")
    bins_H, (number, total, _) = bins_QH[place], moments_Q3[place]
    power_X = np.arange(-16, 5) if bins_H.any() else np.empty(0, np.int64)
    epsilon_X = 2.0**power_X
    share_X = np.cumsum(bins_H)[4 * power_X + 95] / positive(bins_H.sum())
    null_X = 1 - np.exp(-epsilon_X * positive(number) / positive(total))
    return pd.DataFrame({"epsilon": epsilon_X, "share": share_X, "share_null": null_X})


def margin_null(num_experts: int, top_k: int) -> float:
    """Return the margin of independent Gaussian scores, in units of their sd within a token.

    1 / (N phi(x)), x the score that k of N exceed: with more experts margins shrink by
    construction. To first order in 1/N.

    Returns:
        Above 0; NaN where k is N and no expert is left out.
    """
    from scipy.special import ndtri

    if top_k >= num_experts:
        return math.nan
    x = float(ndtri(1 - top_k / num_experts))
    return math.sqrt(2 * math.pi) * math.exp(x * x / 2) / num_experts


def _range(quantity: str, num_experts: int, top_k: int) -> tuple[float, float]:
    """What the outer edges are; with one expert nothing varies, and any width will do."""
    if quantity == "entropy":
        return 0.0, math.log(max(num_experts, 2))
    if quantity == "effective_k":
        return 1.0, float(max(top_k, 2))
    return float(EDGES[quantity][0]), float(EDGES[quantity][-1])


def _bounds(quantity: str, num_experts: int, top_k: int) -> dict[str, float]:
    bounds = {
        "entropy": (0.0, math.log(num_experts)),
        "margin": (0.0, math.nan),
        "logsumexp": (math.nan, math.nan),
        "top_share": (1 / top_k, 1.0),
        "effective_k": (1.0, float(top_k)),
    }
    return dict(zip(("lowest", "highest"), bounds[quantity], strict=True))
