"""B1 and N5: how uncertain a number is when documents, not tokens, are what was sampled.

Tokens of one document route alike, so they are worth fewer independent tokens: T / deff. Both the
variances, from sums over documents (S15), and the bootstrap replicates (S16) add up over shards.

Shape suffixes: S subjects, N experts of a layer, C clusters (documents), B replicates, Q quantiles,
P powers of a document's tokens, or values a Poisson weight can take.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from moe_probe.analysis.statistics.undefined import positive

_ROUNDING = 1e-14
"""Of a sum of squares, what its last digits do not tell."""
_CHUNK = 1024
"""Clusters that one matrix product takes: few, so that most sums fit float32."""


@dataclass(frozen=True)
class ClusterMoments:
    """Sums over the documents of each subject; n is a document's tokens, c its selections."""

    clusters_S: np.ndarray
    """m: number of documents."""
    n_S: np.ndarray
    n_square_S: np.ndarray
    n_power_SP: np.ndarray
    """Sums of n^3, n^4 and n^5."""
    c_SN: np.ndarray
    c_square_SN: np.ndarray
    cn_SN: np.ndarray

    @classmethod
    def zeros(cls, subjects: int, num_experts: int) -> ClusterMoments:
        """Those of no documents, float64."""
        number, table = (subjects,), (subjects, num_experts)
        shapes = (number, number, number, (subjects, 3), table, table, table)
        return cls(*(np.zeros(shape) for shape in shapes))

    def merged(self, other: ClusterMoments) -> ClusterMoments:
        """Add those of other documents of the same subjects."""
        mine = vars(self).items()
        return ClusterMoments(**{name: sums + getattr(other, name) for name, sums in mine})

    def of(self, chosen_S: np.ndarray) -> ClusterMoments:
        """Those of some subjects, named by number or by a mask."""
        return ClusterMoments(**{name: sums[chosen_S] for name, sums in vars(self).items()})

    def pooled(self) -> ClusterMoments:
        """Sum over the subjects, which leaves one (S = 1)."""
        return ClusterMoments(
            self.clusters_S.sum(keepdims=True),
            self.n_S.sum(keepdims=True),
            self.n_square_S.sum(keepdims=True),
            self.n_power_SP.sum(axis=0, keepdims=True),
            self.c_SN.sum(axis=0, keepdims=True),
            self.c_square_SN.sum(axis=0, keepdims=True),
            self.cn_SN.sum(axis=0, keepdims=True),
        )


def squared_residuals(moments: ClusterMoments, share_SN: np.ndarray) -> np.ndarray:
    """Return sum (c - p n)^2 over the documents: float64 [S, N], >= 0.

    Args:
        moments: Sums over the documents of each subject.
        share_SN: p, broadcast against [S, N].
    """
    squares_SN = (
        moments.c_square_SN
        - 2 * share_SN * moments.cn_SN
        + share_SN**2 * moments.n_square_S[:, None]
    )
    # Rounding must not make it negative, nor leave something where documents are all alike.
    return np.where(squares_SN > _ROUNDING * moments.c_square_SN, squares_SN, 0.0)


def cluster_variance(moments: ClusterMoments) -> np.ndarray:
    """Return the variance of each subject's selection frequencies p = sum c / sum n.

    m / (m - 1) sum (c - p n)^2 / (sum n)^2, the linearised variance of a ratio of two sums over
    m documents drawn independently.

    Returns:
        float64 [S, N], >= 0; NaN where a subject has fewer than two documents, or no tokens.
        Source: Cochran, Sampling Techniques (1977), equation 6.13.
    """
    clusters_S, n_S = moments.clusters_S, positive(moments.n_S)
    share_SN = moments.c_SN / n_S[:, None]
    factor_S = clusters_S / np.where(clusters_S > 1, clusters_S - 1, np.nan) / n_S**2
    return np.asarray(factor_S[:, None] * squared_residuals(moments, share_SN))


def stratified_variance(moments: ClusterMoments) -> np.ndarray:
    """Return the variance of the pooled frequencies when the subjects are fixed, not sampled.

    sum over subjects of (T_S / T)^2 Var_S. A subject with one document has no variance of its
    own: it is centred on the pooled frequency, which errs upwards.

    Returns:
        float64 [N], >= 0; NaN where there are fewer than two documents, or no tokens.
    """
    pooled = moments.pooled()
    tokens = positive(pooled.n_S)
    within_SN = cluster_variance(moments) * (moments.n_S[:, None] / tokens) ** 2
    lone_SN = squared_residuals(moments, pooled.c_SN / tokens) / tokens**2
    total_N = np.where(moments.clusters_S[:, None] > 1, within_SN, lone_SN).sum(
        axis=0, where=(moments.clusters_S > 0)[:, None]
    )
    return np.where(pooled.clusters_S > 1, total_N, np.nan)


def design_effect(variance: np.ndarray, share: np.ndarray, tokens: np.ndarray | int) -> np.ndarray:
    """Return deff = Var(p) / (p (1 - p) / T): 1 if tokens were independent.

    Arrays broadcast; float64, >= 0, NaN where p is 0 or 1, or T is 0.
    Source: Kish (1965).
    """
    return np.asarray(variance * tokens / positive(share * (1 - share)))


def likeness(deff: float, mean_tokens: float) -> float:
    """Return rho of deff = 1 + rho (n - 1), the correlation of two tokens of one document.

    Args:
        deff: Design effect.
        mean_tokens: n, sum n^2 / sum n over the documents.

    Returns:
        In [0, 1], 0 where documents have one token; NaN where deff is. Source: Kish (1965).
    """
    if not mean_tokens > 1:
        return 0.0
    return float(np.clip((deff - 1) / (mean_tokens - 1), 0.0, 1.0))


def pooled_design_effect(moments: ClusterMoments) -> np.ndarray:
    """Return each expert's design effect, all subjects pooled: float64 [N], NaN where undefined."""
    pooled = moments.pooled()
    share_N = (pooled.c_SN / positive(pooled.n_S)[:, None])[0]
    return design_effect(cluster_variance(pooled)[0], share_N, int(pooled.n_S[0]))


def effective_tokens(tokens: np.ndarray | int, deff: np.ndarray | float) -> np.ndarray:
    """Return T_eff = T / deff, how many independent tokens say as much; NaN unless deff > 0."""
    return np.asarray(tokens / positive(deff))


def layer_quantiles(deff_N: np.ndarray, quantiles: tuple[float, ...]) -> np.ndarray:
    """Return quantiles over the experts with a value, float64 [Q, ...]; NaN where none has one."""
    # np.nanquantile calls a function for each row; blanks are sorted to the end.
    ordered_N = np.sort(deff_N, axis=-1)
    last = np.maximum((~np.isnan(deff_N)).sum(axis=-1, keepdims=True) - 1, 0)
    place_Q = last * np.array(quantiles)
    low_Q = np.floor(place_Q).astype(np.int64)
    low, high = (
        np.take_along_axis(ordered_N, np.minimum(place, last), axis=-1)
        for place in (low_Q, low_Q + 1)
    )
    return np.moveaxis(low + (high - low) * (place_Q - low_Q), -1, 0)


def halves(keys: Sequence[str]) -> np.ndarray:
    """Return the half of the documents that each cluster is in, 0 or 1: int64 [C].

    It depends on the cluster's key alone, so shards and machines agree.
    """
    digests = [blake2b(key.encode(), digest_size=1, salt=b"half").digest() for key in keys]
    return np.array([digest[0] & 1 for digest in digests], np.int64)


def poisson_weights(keys: Sequence[str], replicates: int) -> np.ndarray:
    """Return how often each replicate draws each cluster: Poisson(1), uint8 [B, C].

    A weight depends on the cluster's key and the replicate's number alone, so shards, machines and
    orders of documents agree. A key is hashed to 64 bits, which start a splitmix64 sequence; its
    b-th number becomes a weight by the inverse of Poisson's distribution function.

    Sources: Chamandy et al. (2012) for the bootstrap, Steele et al. (2014) for splitmix64.
    """
    digests = b"".join(blake2b(key.encode(), digest_size=8).digest() for key in keys)
    start_C = np.frombuffer(digests, "<u8")
    step_B = np.arange(1, replicates + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    bits_BC = start_C + step_B[:, None]
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        bits_BC = (bits_BC ^ (bits_BC >> np.uint64(shift))) * np.uint64(factor)
    bits_BC ^= bits_BC >> np.uint64(31)
    drawn_BC: np.ndarray = np.searchsorted(_POISSON_P, bits_BC, side="right").astype(np.uint8)
    return drawn_BC


def _poisson_thresholds() -> np.ndarray:
    """The distribution function of Poisson(1) in units of 2^-64, as far as it stays below 1."""
    below_P = np.cumsum([math.exp(-1) / math.factorial(value) for value in range(16)])
    return (below_P * 2.0**64).astype(np.uint64)


_POISSON_P = _poisson_thresholds()


def replicate_sums(weights_BC: np.ndarray, counts_CN: np.ndarray) -> np.ndarray:
    """Return each replicate's selections, sum over clusters of weight times count: float64 [B, N].

    Whole numbers, exact below 2^53, so the sums of shards add up to those of the whole.
    """
    sums_BN = np.zeros((len(weights_BC), counts_CN.shape[1]))
    for start in range(0, len(counts_CN), _CHUNK):
        part_BC = weights_BC[:, start : start + _CHUNK]
        part_CN = counts_CN[start : start + _CHUNK]
        # Half the time where float32 is exact as well.
        most = int(part_BC.max(initial=0)) * int(part_CN.max(initial=0)) * len(part_CN)
        dtype = np.float32 if most < 2**24 else np.float64
        sums_BN += part_BC.astype(dtype) @ part_CN.astype(dtype)
    return sums_BN
