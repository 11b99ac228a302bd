"""B4: many tests at once, and one test per layer that allows for documents.

With enough tokens every expert differs from fair routing, so tests only screen: what counts is the
size of an effect and its interval.

Shape suffixes: N experts of a layer, B bootstrap replicates; M values in ascending order.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import fdtrc

from moe_probe.analysis.statistics.undefined import positive


def benjamini_hochberg(p_values: np.ndarray) -> np.ndarray:
    """Return q-values: the least false discovery rate at which each test is a discovery.

    min over j >= i of m p_(j) / j, with p_(1) the smallest of m p-values. Holds for independent
    and for positively dependent tests.

    Args:
        p_values: Any shape, a family of its own; NaN is no test.

    Returns:
        float64 of the same shape in [0, 1], NaN where p is.
        Source: Benjamini and Hochberg (1995).
    """
    order_M = np.argsort(p_values, axis=None)
    sorted_M = np.asarray(p_values, np.float64).ravel()[order_M]
    # NaN is sorted to the end.
    sorted_M = sorted_M[: np.count_nonzero(~np.isnan(sorted_M))]
    rank_M = np.arange(1, len(sorted_M) + 1)
    scaled_M = np.minimum(sorted_M * len(sorted_M) / rank_M, 1)
    found_M = np.full(np.size(p_values), np.nan)
    found_M[order_M[: len(sorted_M)]] = np.minimum.accumulate(scaled_M[::-1])[::-1]
    return found_M.reshape(np.shape(p_values))


def layer_test(
    counts_N: np.ndarray, replicates_BN: np.ndarray, documents: int
) -> tuple[float, float, float]:
    """Test a layer against fair routing with the covariance that resampled documents show.

    sum (q - 1/N)^2 is to its expectation tr V as a chi-square is to its degrees of freedom
    f = (N - 1) / (1 + a^2) = (tr V)^2 / tr V^2 (Satterthwaite), with V the covariance of the
    shares q over the replicates. tr V itself is known from m documents and B replicates alone, as
    a chi-square with f / (1 / (m - 1) + 1 / B) degrees of freedom is: their ratio is of F's
    distribution, which makes p hold far out in the tail too. tr V^2 is corrected for what B
    replicates add to it. Any k, also a variable one.

    Args:
        counts_N: Selections, [N].
        replicates_BN: The same of every replicate; those without selections are left out.
        documents: m, what the replicates are drawn from.

    Returns:
        statistic, degrees of freedom f, p-value; NaN where nothing was selected, with fewer than
        two documents, or where the replicates do not differ.
        Source: Rao and Scott (1981); Thomas and Rao (1987) for F; Srivastava (2005) for the
        correction.
    """
    drawn_BN = replicates_BN[replicates_BN.sum(axis=1) > 0]
    if not counts_N.any() or min(len(drawn_BN), len(counts_N), documents) < 2:
        return math.nan, math.nan, math.nan
    share_N = counts_N / counts_N.sum()
    offset_BN = drawn_BN / drawn_BN.sum(axis=1, keepdims=True) - share_N
    number, most = len(drawn_BN), len(counts_N) - 1
    # Resampling m documents varies less than drawing others does.
    covariance_NN = offset_BN.T @ offset_BN / number * (documents / (documents - 1))
    trace = float(positive(np.trace(covariance_NN)))
    square = float((covariance_NN**2).sum()) - trace**2 / number
    square *= number**2 / ((number + 2) * (number - 1))
    # Equal eigenvalues give the largest number of degrees of freedom, N - 1.
    freedom = trace**2 / max(square, trace**2 / most)
    ratio = float(((share_N - 1 / len(counts_N)) ** 2).sum()) / trace
    known = freedom / (1 / (documents - 1) + 1 / number)
    return ratio * freedom, freedom, float(fdtrc(freedom, known, ratio))
