"""How far two traces' loads are apart, and how far noise alone would bring them.

The unit of sampling is the document. Where both traces hold a document, its two contributions are
subtracted before they are squared, so what both have in common is no noise.

Shape suffixes: C documents of a trace, P pairs of documents, N experts of a layer, B replicates;
2 is both traces.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from moe_probe.analysis.comparison.documents import Pairs
from moe_probe.analysis.metrics.divergence import jensen_shannon
from moe_probe.analysis.metrics.frequency import relative_load
from moe_probe.analysis.metrics.noise import index_noise
from moe_probe.analysis.statistics.undefined import positive

_CHUNK = 1024


@dataclass(frozen=True)
class Differences:
    """Second less first, of every expert's relative load."""

    value_N: np.ndarray
    low_N: np.ndarray
    high_N: np.ndarray
    p_value_N: np.ndarray


def difference_variance(
    first_CN: np.ndarray, second_CN: np.ndarray, pairs: Pairs
) -> tuple[np.ndarray, float]:
    """Return the variance of the difference of two traces' relative loads.

    r = N sum c / sum a is a ratio of sums over documents, a the selections of a document. Its
    linearisation is z = N / A (c - q a) for each of them, and the variance is f^2 times the sum
    over all documents of (z - z')^2, with z = 0 for one that a trace lacks. f^2 makes up for q
    being made of the same documents, m / (m - 1) where all are as long: a document with much of
    the text hides its share of the variance. It is the larger one of both traces. One over the sum
    of the squares of the documents' shares of the variance, means over experts, is how many
    documents there are in effect.

    Args:
        first_CN: Selections by document of the one trace.
        second_CN: Of the other.
        pairs: The documents they have in common; none if the traces are independent.

    Returns:
        float64 [N], NaN where a trace has fewer than two documents; and the degrees of freedom:
        documents in effect over f^2, but at least 1, and less than the documents of either trace.
        Source: Cochran, Sampling Techniques (1977), equations 6.13 and 12; Bell and McCaffrey
        (2002).
    """
    first, second = _Linear.of(first_CN), _Linear.of(second_CN)
    total_N = np.zeros(first_CN.shape[1])
    for apart_CN in _apart(first, second, pairs):
        total_N += (apart_CN**2).sum(axis=0)
    fewest = min(first.documents, second.documents)
    left = float(np.minimum(first.left, second.left))
    if fewest < 2 or not total_N.any():
        return total_N / left, fewest - 1.0
    square, varying = 0.0, max(int(np.count_nonzero(total_N)) - 1, 1)
    for apart_CN in _apart(first, second, pairs):
        share_C = np.nanmean(apart_CN**2 / positive(total_N), axis=1)
        square += float((share_C**2).sum())
    # Of a mean of so many squares of normal values the square is that much too large.
    freedom = left * (1 + 2 / varying) / square
    return total_N / left, float(np.clip(freedom, 1.0, fewest - 1.0))


def _apart(first: _Linear, second: _Linear, pairs: Pairs) -> Iterator[np.ndarray]:
    """Yield z - z' of all documents, those of both traces first, a few at a time."""
    for start in range(0, len(pairs), _CHUNK):
        chosen = slice(start, start + _CHUNK)
        yield first.rows(pairs.first_P[chosen]) - second.rows(pairs.second_P[chosen])
    for linear, known_P in ((first, pairs.first_P), (second, pairs.second_P)):
        others = np.setdiff1d(np.arange(len(linear.counts_CN)), known_P)
        for start in range(0, len(others), _CHUNK):
            yield linear.rows(others[start : start + _CHUNK])


@dataclass(frozen=True)
class _Linear:
    """z of every document, made for a few of them at a time."""

    counts_CN: np.ndarray
    share_N: np.ndarray
    scale: float
    left: float
    """1 / f^2: the part of the variance that is in the residuals."""
    documents: int

    @classmethod
    def of(cls, counts_CN: np.ndarray) -> _Linear:
        length_C = counts_CN.sum(axis=1, dtype=np.float64)
        counts_N, total = counts_CN.sum(axis=0, dtype=np.float64), float(length_C.sum())
        documents = int(np.count_nonzero(length_C))
        if documents < 2:
            return cls(counts_CN, counts_N, math.nan, math.nan, documents)
        part_C = length_C / total
        # Of documents whose variance goes by their length.
        square = float(part_C @ part_C)
        facts = len(counts_N) / total, 1 - square, documents
        linear = cls(counts_CN, counts_N / total, *facts)
        square_N, weighted_N = np.zeros((2, len(counts_N)))
        for start in range(0, len(part_C), _CHUNK):
            chosen = np.arange(start, min(start + _CHUNK, len(part_C)))
            square_CN = linear.rows(chosen) ** 2
            square_N += square_CN.sum(axis=0)
            weighted_N += part_C[chosen] @ square_CN
        varies_N = square_N > 0
        if not varies_N.any():
            return linear
        # Of documents that vary as their residuals do; long ones more than by their length.
        part = float((weighted_N[varies_N] / square_N[varies_N]).mean())
        return replace(linear, left=min(1 - 2 * part + square, 1 - square))

    def rows(self, chosen: np.ndarray) -> np.ndarray:
        counts_CN = self.counts_CN[chosen].astype(np.float64)
        expected_CN = counts_CN.sum(axis=1)[:, None] * self.share_N
        return np.asarray((counts_CN - expected_CN) * self.scale)


def load_differences(
    first_N: np.ndarray, second_N: np.ndarray, variance_N: np.ndarray, freedom: float
) -> Differences:
    """Compare the relative loads of two traces in one layer.

    Args:
        first_N: Selections of the reference.
        second_N: Of the other trace.
        variance_N: From `difference_variance`; NaN where none is known.
        freedom: Likewise.

    Returns:
        The differences, in [-N/k, N/k]; 95 % intervals from Student's t; and two-sided p-values,
        NaN where nothing varies.
    """
    from scipy.special import stdtr, stdtrit

    degrees = float(positive(freedom))
    value_N = relative_load(second_N) - relative_load(first_N)
    error_N = np.sqrt(variance_N)
    half_N = error_N * stdtrit(degrees, 0.975)
    p_value_N = 2 * stdtr(degrees, -np.abs(value_N) / positive(error_N))
    return Differences(value_N, value_N - half_N, value_N + half_N, p_value_N)


def divergence(both_2N: np.ndarray) -> float:
    """Return the Jensen-Shannon divergence of two traces' loads in bits, 0 for equal counts.

    In [0, 1]; NaN where a trace selects nothing. Source: Lin (1991), equation 4.1.
    """
    bits = float(jensen_shannon(both_2N)[0, 1])
    # Entropies of equal shares can differ in the last digit from that of their mean.
    is_equal = np.array_equal(both_2N[0], both_2N[1]) and not math.isnan(bits)
    return 0.0 if is_equal else bits


def divergence_noise(variance_N: np.ndarray, first_N: np.ndarray, second_N: np.ndarray) -> float:
    """Return the Jensen-Shannon divergence in bits that noise alone gives two traces.

    1/8 sum Var(q' - q) / q nats over experts that something selects, q the mean of both shares:
    the expectation where the true shares are equal, to first order.

    Args:
        variance_N: Variance of the difference of relative loads, `difference_variance`.
        first_N: Selections of the one trace.
        second_N: Of the other.

    Returns:
        In [0, 1]; NaN where the variance is, or a trace selects nothing.
    """
    share_N = (relative_load(first_N) + relative_load(second_N)) / 2
    if np.isnan(share_N).any() or np.isnan(variance_N).any():
        return math.nan
    used_N = share_N > 0
    # Loads are N times the shares, and their variance N^2 times.
    nats = (variance_N[used_N] / share_N[used_N]).sum() / (8 * len(share_N))
    return min(float(nats) / math.log(2), 1.0)


def index_difference_noise(
    index: Callable[[np.ndarray], np.ndarray], first_BN: np.ndarray, second_BN: np.ndarray
) -> float:
    """Return the sd of the difference of an imbalance index over resampled documents.

    Args:
        index: A function of `imbalance`: [..., N] to [...].
        first_BN: Counts of the one trace in every replicate.
        second_BN: Of the other, in which the same documents were drawn.

    Returns:
        In the unit of the index; NaN with fewer than two replicates that define it.
    """

    def difference(both_B2N: np.ndarray) -> np.ndarray:
        values_B2 = index(both_B2N)
        return np.asarray(values_B2[:, 1] - values_B2[:, 0])

    return float(index_noise(np.stack([first_BN, second_BN], axis=1), difference))
