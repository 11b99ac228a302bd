"""B2: the design effects that 95 % intervals are widened by.

Long documents decide the variance of a frequency, so few of them count, and it says little where an
expert has few selections. So it is corrected for the documents' lengths, drawn towards those of the
layer's other experts as far as these agree, and widened by Student's t.

Shape suffixes: S subjects, N experts of a layer; P powers of a document's tokens n.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from scipy.special import digamma, fdtrc, polygamma, stdtrit

from moe_probe.analysis.statistics.clusters import ClusterMoments, squared_residuals
from moe_probe.analysis.statistics.intervals import Z
from moe_probe.analysis.statistics.undefined import positive

_MOST_FREEDOM = 2e6
"""As good as infinite."""


def interval_deffs(moments: ClusterMoments) -> np.ndarray:
    """Return every expert's design effect as intervals are to use it, in each subject.

    deff (t / z)^2: T over it, in an interval of normal quantiles, gives 95 % with documents for the
    sample. Steps, S the residual sum of squares, sum (c - p n)^2:

    1. deff = f S / (p (1 - p) T). f is the inverse of the share of the variance that is left in
       residuals if Var(c) is p (1 - p) ((1 - rho) n + rho n^2), and m / (m - 1) for documents of
       one length; rho is that of the layer. Source: Bell and McCaffrey (2002).
    2. It is known to d degrees of freedom, 1 / d = 1 / d' + g^2 / 4: d' by Satterthwaite from the
       lengths, m - 1 for one length, and g the skewness of p in T_eff tokens, g^2 = (1 - 2p)^2 /
       (p (1 - p) T_eff), because few hits say little of how they cluster. The 4 was found in
       simulated documents.
    3. The experts' values are scaled inverse chi-squared around one of d0 degrees, by moments of
       their logarithms; each is replaced by the mean of its own and that, weighted by d and d0.
       Source: Smyth (2004), theorem 1 and section 6.2. What is too large to be one of N such
       values is drawn less: d0 min(1, N P) for it, P its tail of F with d and d0 degrees, or the
       experts alike would hide the one that few documents use. After Phipson et al. (2016).
    4. t has d + d0 degrees, at most those of all experts together.

    Returns:
        float64 [S, N], > 0, also of experts never selected; NaN where there are fewer than two
        documents, or where nothing varies.
    """
    share_SN, independent_SN, squares_SN = _squares(moments)
    lengths = _lengths(moments, _pooled(squares_SN, independent_SN))
    deff_SN = lengths.factor_S[:, None] * squares_SN / positive(independent_SN)
    centre_S = _pooled(lengths.factor_S[:, None] * squares_SN, independent_SN)
    skew_SN = (1 - 2 * share_SN) ** 2 * centre_S[:, None] / positive(independent_SN)
    freedom_SN = 1 / (1 / lengths.freedom_S[:, None] + skew_SN / 4)
    freedom_SN = np.where(deff_SN > 0, freedom_SN, np.nan)
    # With documents whose tokens all do the same: nothing that experts share is larger.
    alike_S = lengths.factor_S * moments.n_square_S / positive(moments.n_S)
    centre_S, prior_S = _prior(deff_SN, freedom_SN, centre_S, alike_S)
    own_SN = np.nan_to_num(freedom_SN)
    prior_SN = _own_prior(deff_SN / positive(centre_S)[:, None], own_SN, prior_S)
    weight_SN = np.where(own_SN > 0, own_SN / positive(own_SN + prior_SN), 0)
    moderated_SN = centre_S[:, None] + weight_SN * (np.nan_to_num(deff_SN) - centre_S[:, None])
    known_S = (own_SN > 0).sum(axis=1)
    # The selections of all experts are fixed: one of them is known from the others.
    most_S = own_SN.sum(axis=1) * np.maximum(known_S - 1, 1) / positive(known_S)
    total_SN = np.maximum(np.minimum(own_SN + prior_SN, most_S[:, None]), 1)
    return np.asarray(positive(moderated_SN) * (stdtrit(total_SN, 0.975) / Z) ** 2)


def unseen_deffs(moments: ClusterMoments) -> np.ndarray:
    """Return the `interval_deffs` of an expert that nothing selects, be there one or not.

    Returns:
        float64 [S]; NaN where those of all experts are.
    """
    none_S1 = np.zeros((len(moments.n_S), 1))
    names = ("c_SN", "c_square_SN", "cn_SN")
    sums = {name: np.append(getattr(moments, name), none_S1, axis=1) for name in names}
    return interval_deffs(replace(moments, **sums))[:, -1]


def length_correction(moments: ClusterMoments) -> np.ndarray:
    """Return how many times larger than cluster_variance Var(p) is, for the documents' lengths.

    The f of `interval_deffs` over m / (m - 1): 1 for documents of one length. Long documents pull p
    towards themselves, so that residuals show less than there is: half for ten documents of
    lognormal lengths (sd of their logarithm 1.2) whose tokens are alike, four fifths for 60.

    Returns:
        float64 [S]; NaN for fewer than two documents. Source: Bell and McCaffrey (2002).
    """
    _, independent_SN, squares_SN = _squares(moments)
    lengths = _lengths(moments, _pooled(squares_SN, independent_SN))
    clusters_S = np.where(moments.clusters_S > 1, moments.clusters_S, np.nan)
    return np.asarray(lengths.factor_S * (clusters_S - 1) / clusters_S)


def centred_within(moments: ClusterMoments) -> ClusterMoments:
    """Return moments of all documents together, each less what its subject has above all (S = 1).

    Their residuals are those inside subjects: what is left to chance where subjects are fixed.
    """
    pooled = moments.pooled()
    squares_N = squared_residuals(moments, moments.c_SN / positive(moments.n_S)[:, None])
    squares_N = np.nansum(squares_N, axis=0)
    share_SN = pooled.c_SN / positive(pooled.n_S)[:, None]
    cn_SN = share_SN * pooled.n_square_S[:, None]
    return ClusterMoments(
        pooled.clusters_S,
        pooled.n_S,
        pooled.n_square_S,
        pooled.n_power_SP,
        pooled.c_SN,
        c_square_SN=squares_N + share_SN * cn_SN,
        cn_SN=cn_SN,
    )


class _Lengths(NamedTuple):
    """What the documents' lengths do to a sum of squared residuals."""

    factor_S: np.ndarray
    """Variance of sum c over the expected sum."""
    freedom_S: np.ndarray
    """Of the chi-squared that has the sum's mean and variance."""


def _squares(moments: ClusterMoments) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """p, p (1 - p) T and S, [S, N] each; NaN for fewer than two documents."""
    tokens_S1 = positive(moments.n_S)[:, None]
    tokens_S1 = np.where(moments.clusters_S[:, None] > 1, tokens_S1, np.nan)
    share_SN = moments.c_SN / tokens_S1
    independent_SN = share_SN * (1 - share_SN) * tokens_S1
    return share_SN, independent_SN, squared_residuals(moments, share_SN)


def _pooled(squares_SN: np.ndarray, independent_SN: np.ndarray) -> np.ndarray:
    return np.asarray(np.nansum(squares_SN, axis=1) / positive(np.nansum(independent_SN, axis=1)))


def _lengths(moments: ClusterMoments, ratio_S: np.ndarray) -> _Lengths:
    """Find rho from S / (p (1 - p) T), the ratio of sums over experts, then both of its effects."""
    n1, n2 = positive(moments.n_S), moments.n_square_S
    n3, n4, n5 = moments.n_power_SP.T
    # Expected of independent tokens, and of tokens of a document that all do the same.
    alone, alike = 1 - n2 / n1**2, (n2 - 2 * n3 / n1 + n2**2 / n1**2) / n1
    rho = np.clip(np.nan_to_num((ratio_S - alone) / positive(alike - alone)), 0, 1)
    # v = Var(c) up to a factor; the residuals' covariance is diag(v) - u w' - w u'.
    less = 1 - rho
    v, vn, vnn = less * n1 + rho * n2, less * n2 + rho * n3, less * n3 + rho * n4
    vv = less**2 * n2 + 2 * less * rho * n3 + rho**2 * n4
    nvv = less**2 * n3 + 2 * less * rho * n4 + rho**2 * n5
    trace = v - 2 * vn / n1 + n2 * v / n1**2
    uu, uw = n2 / n1**2, (vn - n2 * v / (2 * n1)) / n1
    ww = vv - vn * v / n1 + n2 * v**2 / (4 * n1**2)
    uvw = (nvv - vnn * v / (2 * n1)) / n1
    square = vv - 4 * uvw + 2 * uw**2 + 2 * uu * ww
    return _Lengths(v / positive(trace), np.maximum(trace**2 / positive(square), 1))


def _prior(
    deff_SN: np.ndarray, freedom_SN: np.ndarray, pooled_S: np.ndarray, most_S: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return what the experts' design effects have in common, and to how many degrees of freedom.

    Infinite where they differ by no more than chance; 0, and `pooled_S`, for fewer than two. What
    they have in common is at most `most_S`: logarithms of values known to few degrees go far.
    """
    half_SN = freedom_SN / 2
    noise_SN = polygamma(1, half_SN)
    log_SN = np.log(positive(deff_SN)) - digamma(half_SN) + np.log(half_SN)
    weight_SN = np.nan_to_num(1 / noise_SN)
    total_S, square_S = weight_SN.sum(axis=1), (weight_SN**2).sum(axis=1)
    mean_S = np.nansum(weight_SN * log_SN, axis=1) / positive(total_S)
    apart_S = np.nansum(weight_SN * (log_SN - mean_S[:, None]) ** 2, axis=1) / positive(total_S)
    apart_S = apart_S / positive(1 - square_S / positive(total_S) ** 2)
    known_S = (weight_SN > 0).sum(axis=1)
    excess_S = np.maximum(apart_S - known_S / positive(total_S), 0)
    weight_SN = np.nan_to_num(1 / (noise_SN + excess_S[:, None]))
    mean_S = np.nansum(weight_SN * log_SN, axis=1) / positive(weight_SN.sum(axis=1))
    half_S = _inverse_trigamma(excess_S)
    is_one_S = np.isinf(half_S)
    finite_S = np.where(is_one_S, 1, half_S)
    shift_S = np.where(is_one_S, 0, digamma(finite_S) - np.log(finite_S))
    is_known_S = known_S > 1
    log_S = np.fmin(mean_S + shift_S, np.log(positive(most_S)))
    centre_S = np.where(is_known_S, np.exp(log_S), pooled_S)
    return centre_S, np.where(is_known_S, 2 * half_S, 0)


def _own_prior(ratio_SN: np.ndarray, own_SN: np.ndarray, prior_S: np.ndarray) -> np.ndarray:
    """Return each expert's d0: fewer where its value is too large for the others'.

    Args:
        ratio_SN: Its value over what they have in common; NaN where it has none.
        own_SN: d, 0 where it has none.
        prior_S: Theirs.
    """
    prior_S1 = np.minimum(prior_S, _MOST_FREEDOM)[:, None]
    is_known_SN = (own_SN > 0) & (prior_S1 > 0)
    tail_SN = fdtrc(np.where(is_known_SN, own_SN, 1), np.where(is_known_SN, prior_S1, 1), ratio_SN)
    expected_SN = (own_SN > 0).sum(axis=1, keepdims=True) * np.where(is_known_SN, tail_SN, 1)
    return np.asarray(np.where(expected_SN < 1, prior_S1 * expected_SN, prior_S[:, None]))


def _inverse_trigamma(values: np.ndarray) -> np.ndarray:
    """Return x with trigamma(x) = value, to 11 digits; infinite from 1e-6 down."""
    y = np.clip(values, 1e-6, 1e6)
    x = (1 + np.sqrt(1 + 2 * y)) / (2 * y)
    for _ in range(4):
        found = polygamma(1, x)
        x = x + found * (1 - found / y) / polygamma(2, x)
    return np.where(values > 1e-6, x, np.inf)
