"""E6: how far subjects (or any strata) are apart in the experts they use.

Every matrix is symmetric, with 0 (1 for overlaps) on its diagonal, and NaN in the rows and columns
of a stratum without selections.

Shape suffixes: S strata, N experts of a layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from moe_probe.analysis.metrics.frequency import assignment_share
from moe_probe.analysis.metrics.imbalance import entropy
from moe_probe.analysis.statistics.random_sets import divergence_bias
from moe_probe.analysis.statistics.undefined import positive


def jensen_shannon(counts_SN: np.ndarray) -> np.ndarray:
    """Return JS = H((q + q') / 2) - (H(q) + H(q')) / 2 of every two strata, in bits.

    Args:
        counts_SN: Selections by stratum, [S, N].

    Returns:
        float64 [S, S] in [0, 1]; its root is a metric. Null: `divergence_null`.
        Source: Lin (1991), equation 4.1.
    """
    entropy_S = entropy(counts_SN)

    def nats(row: int, share_N: np.ndarray, share_SN: np.ndarray) -> np.ndarray:
        mixed_S = entropy((share_N + share_SN) / 2)
        return np.asarray(mixed_S - (entropy_S[row] + entropy_S[row : row + len(share_SN)]) / 2)

    # Rounding must not leave the range.
    return np.clip(_pairwise(assignment_share(counts_SN), nats) / math.log(2), 0.0, 1.0)


def divergence_null(
    assignments_S: np.ndarray, num_experts: int, top_k: float, deff_S: np.ndarray | float = 1.0
) -> np.ndarray:
    """Return the divergence in bits of strata that differ by noise alone, to first order.

    (N - k) / 8 (deff / A + deff' / A') nats, whatever the experts' true shares are.

    Args:
        assignments_S: A_S.
        num_experts: N; of experts that something selects, where some are idle.
        top_k: k.
        deff_S: Design effect of each stratum, or one for all.

    Returns:
        float64 [S, S], at most 1, 0 on the diagonal.
    """
    with np.errstate(divide="ignore"):
        # Documents that are all alike are worth any number of tokens.
        effective_S = positive(assignments_S) / deff_S
    bits_SS = divergence_bias(num_experts, top_k, effective_S[:, None], effective_S)
    return np.asarray(np.minimum(_zero_diagonal(bits_SS), 1.0))


def hellinger(counts_SN: np.ndarray) -> np.ndarray:
    """Return sqrt(1/2 sum (sqrt q - sqrt q')^2) of every two strata.

    Returns:
        float64 [S, S] in [0, 1], a metric; 1 where no expert is shared.
    """
    root_SN = np.sqrt(assignment_share(counts_SN))

    def distance(_: int, root_N: np.ndarray, root_SN: np.ndarray) -> np.ndarray:
        return np.asarray(np.sqrt(((root_N - root_SN) ** 2).sum(axis=1) / 2))

    return np.asarray(np.minimum(_pairwise(root_SN, distance), 1.0))


def total_variation_between(counts_SN: np.ndarray) -> np.ndarray:
    """Return 1/2 sum |q - q'| of every two strata, the share of selections that differ.

    Returns:
        float64 [S, S] in [0, 1].
    """

    def distance(_: int, share_N: np.ndarray, share_SN: np.ndarray) -> np.ndarray:
        return np.asarray(np.abs(share_N - share_SN).sum(axis=1) / 2)

    return np.asarray(np.minimum(_pairwise(assignment_share(counts_SN), distance), 1.0))


def top_jaccard(counts_SN: np.ndarray, number: int) -> np.ndarray:
    """Return |M & M'| / |M | M'| of the sets of most used experts of every two strata.

    Of equally used experts those of lower index come first. Experts that a stratum never selects
    are in no set, so a set can be smaller.

    Args:
        counts_SN: Selections by stratum, [S, N].
        number: m, size of the sets, in [1, N].

    Returns:
        float64 [S, S] in [0, 1]. Null: `random_jaccard`, for sets of full size.
    """
    order_SN = np.argsort(-np.asarray(counts_SN, np.float64), axis=1, kind="stable")
    member_SN = np.zeros(counts_SN.shape)
    np.put_along_axis(member_SN, order_SN[:, :number], 1.0, axis=1)
    member_SN *= counts_SN > 0
    size_S = np.where(member_SN.any(axis=1), member_SN.sum(axis=1), np.nan)
    common_SS = member_SN @ member_SN.T
    return np.asarray(common_SS / (size_S[:, None] + size_S - common_SS))


def random_jaccard(num_experts: int, number: int) -> float:
    """Return the expected Jaccard index of two random sets of m out of N experts.

    The mean of x / (2m - x) over the hypergeometric number x of common experts; about m / (2N - m).
    """
    rest = num_experts - number
    ways = [
        math.comb(number, common) * math.comb(rest, number - common) for common in range(number + 1)
    ]
    mean = sum(way * common / (2 * number - common) for common, way in enumerate(ways))
    return mean / sum(ways)


def mean_of_pairs(matrix_SS: np.ndarray) -> float:
    """Return the mean over pairs of different strata, both with selections; NaN without any."""
    pair_P = matrix_SS[np.triu_indices(len(matrix_SS), 1)]
    known_P = pair_P[~np.isnan(pair_P)]
    return float(known_P.mean()) if len(known_P) else math.nan


def _pairwise(
    share_SN: np.ndarray, compare: Callable[[int, np.ndarray, np.ndarray], np.ndarray]
) -> np.ndarray:
    """Fill a symmetric matrix; `compare` takes a row, its number, and the rows from it on."""
    matrix_SS = np.empty((len(share_SN), len(share_SN)))
    for row, share_N in enumerate(share_SN):
        matrix_SS[row, row:] = matrix_SS[row:, row] = compare(row, share_N, share_SN[row:])
    return _zero_diagonal(matrix_SS)


def _zero_diagonal(matrix_SS: np.ndarray) -> np.ndarray:
    np.fill_diagonal(matrix_SS, np.where(np.isnan(matrix_SS.diagonal()), np.nan, 0.0))
    return matrix_SS
