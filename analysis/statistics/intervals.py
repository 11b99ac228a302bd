"""B2 and B3: 95 % intervals of a selection frequency, and how many tokens certify what.

The tokens of a document are not independent, so every count is judged at T_eff = T / deff.

Shape suffixes: N experts of a layer; leading axes, if any, are kept.
"""

from __future__ import annotations

import numpy as np
from scipy.special import betaincinv, ndtri, stdtrit

from moe_probe.analysis.statistics.undefined import positive

Z = 1.959963984540054
"""97.5 % quantile of the normal distribution: all intervals are two-sided 95 %."""
FEW = 10
"""Below so many selections the normal approximation is not used."""
RULE_OF_THREE = 3.0
"""-ln(0.05): with no hit in n trials, rates above 3 / n are excluded at 95 %."""

Values = float | np.ndarray


def wilson(share: Values, n_eff: Values) -> tuple[np.ndarray, np.ndarray]:
    """Return Wilson's interval of a frequency that n_eff independent tokens gave.

    (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n), in [0, 1]; NaN unless n_eff > 0.
    Source: Wilson (1927).
    """
    n = positive(n_eff)
    centre = share + Z**2 / (2 * n)
    half = Z * np.sqrt(share * (1 - np.asarray(share)) / n + (Z / (2 * n)) ** 2)
    scale = 1 + Z**2 / n
    # At p = 0 and p = 1 rounding would step out of [0, 1].
    return np.maximum((centre - half) / scale, 0), np.minimum((centre + half) / scale, 1)


def clopper_pearson(share: Values, n_eff: Values) -> tuple[np.ndarray, np.ndarray]:
    """Return the Clopper-Pearson interval with the real-valued counts x = p n_eff.

    Quantiles 2.5 % of Beta(x, n-x+1) and 97.5 % of Beta(x+1, n-x), in [0, 1]; NaN unless
    n_eff > 0. Source: Korn and Graubard (1998).
    """
    n = positive(n_eff)
    hits = share * n
    misses = n - hits
    low = betaincinv(np.where(hits > 0, hits, 1.0), misses + 1, 0.025)
    high = betaincinv(hits + 1, np.where(misses > 0, misses, 1.0), 0.975)
    # A Beta distribution with a parameter of 0 sits on the edge.
    low = np.where(hits == 0, 0.0, low)
    return low, np.where(misses == 0, 1.0, high)


def few_documents(documents: Values, tail: float = 0.025) -> np.ndarray:
    """Return how many times larger design effects must be because m documents gave them.

    (t / z)^2, with the quantiles of Student's t for m - 1 degrees of freedom and of the normal
    that leave `tail` above them: 42 for two documents, 1.3 for ten, 1 for very many.

    Args:
        documents: m, the number of clusters.
        tail: Chance to be beyond one end of an interval.

    Returns:
        float64, above 1; NaN for fewer than two documents.
        Source: Korn and Graubard (1998).
    """
    freedom = positive(np.asarray(documents, np.float64) - 1)
    return np.asarray((stdtrit(freedom, 1 - tail) / ndtri(1 - tail)) ** 2)


def share_interval(
    counts_N: np.ndarray, tokens: Values, deff_N: np.ndarray, deff_median: Values
) -> tuple[np.ndarray, np.ndarray]:
    """Return the 95 % interval of p = c / T as B2 chooses it by the count.

    Ten or more selections: Wilson at T / deff. One to nine: Clopper-Pearson at T / deff, with the
    layer's median where it is the larger, because few hits say too little of how they cluster.
    None: from 0 to 3 / T_eff (one-sided), likewise. In the last two cases no design effect is
    below 1: rare selections are never more evenly spread than independent ones.

    Args:
        counts_N: Selections, [..., N].
        tokens: T, broadcast against counts_N, as are the other two.
        deff_N: Design effect of each expert; where it is undefined or 0 the median stands in.
        deff_median: Median design effect of the layer.

    Returns:
        low, high: float64 [..., N] in [0, 1]; NaN where T is 0 or no design effect is known.
    """
    share_N = counts_N / positive(tokens)
    own_N = np.where(np.nan_to_num(deff_N) > 0, deff_N, deff_median)
    few_N = np.maximum(np.fmax(own_N, deff_median), 1)
    low_N, high_N = wilson(share_N, tokens / positive(own_N))
    few_low_N, few_high_N = clopper_pearson(share_N, tokens / positive(few_N))
    none_N = np.minimum(RULE_OF_THREE * few_N / positive(tokens), 1)
    low_N = np.where(counts_N < FEW, few_low_N, low_N)
    high_N = np.where(counts_N < FEW, few_high_N, high_N)
    return low_N, np.where(counts_N == 0, none_N, high_N)


def rate_certifiable(tokens_effective: Values, num_experts: int, top_k: float) -> np.ndarray:
    """Return the smallest relative load that no hit in T_eff tokens excludes: 3 N / (k T_eff).

    At most N/k, which excludes nothing; NaN unless T_eff > 0. k is the mean number of experts per
    token, NaN unless it is above 0.
    """
    share = np.minimum(RULE_OF_THREE / positive(tokens_effective), 1)
    return np.asarray(share * num_experts / positive(top_k))


def tokens_needed(load: Values, num_experts: int, top_k: float, deff: Values) -> np.ndarray:
    """Return the tokens in which no hit certifies a relative load below `load`: 3 deff N / (rho k).

    The inverse of `rate_certifiable`, in tokens as recorded; NaN unless load and k are above 0.
    """
    return np.asarray(RULE_OF_THREE * deff * num_experts / positive(np.multiply(load, top_k)))


def tokens_to_estimate(half: Values, num_experts: int, top_k: float, deff: Values) -> np.ndarray:
    """Return the tokens that give a fair share, r = 1, to within +-x, in tokens as recorded.

    (1.96 / x)^2 (N/k - 1) deff with x = half; NaN unless half and k are above 0.
    """
    return np.asarray((Z / positive(half)) ** 2 * (num_experts / positive(top_k) - 1) * deff)
