"""S6 and S15: selections by document, and their moments. Additive.

The table of documents is the only one that grows with the trace, up to MAX_CLUSTERS rows. Moments
and bootstrap replicates (S16, `statistics.clusters`) are made of it.

Shape suffixes: C clusters, S groups (task, subject, area), N experts of a layer, P pieces,
G segments.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from moe_probe.analysis.accumulators.base import Arrays, TableAccumulator
from moe_probe.analysis.metrics.grouping import sums_by_label
from moe_probe.analysis.reading.index import Clusters, TraceIndex
from moe_probe.analysis.reading.rules import Rule
from moe_probe.analysis.reading.source import Rows, Source
from moe_probe.analysis.statistics.clusters import ClusterMoments
from moe_probe.trace import SEGMENTS, LayerSpec

_CHUNK = 1024
_TYPES = (np.uint8, np.uint16, np.uint32, np.int64)


def smallest_type(most: int) -> type[np.unsignedinteger | np.signedinteger]:
    """Return the smallest integer type that holds a number."""
    return next(kind for kind in _TYPES if most <= np.iinfo(kind).max)


def cluster_tokens(source: Source, rule: Rule) -> np.ndarray:
    """Return how many tokens of each cluster a rule counts: int64 [C]."""
    return np.asarray(segment_tokens(source, rule).sum(axis=1))


def segment_tokens(source: Source, rule: Rule) -> np.ndarray:
    """Return the same by segment: int64 [C, G]."""
    tokens_CG = np.zeros((len(source.index.clusters), len(SEGMENTS)), np.int64)
    for part in source.parts:
        pieces = source.pieces(part, rule)
        segment_P = pieces.stratum_P % len(SEGMENTS)
        np.add.at(tokens_CG, (pieces.cluster_P, segment_P), pieces.tokens_P)
    return tokens_CG


class DocumentCounts(TableAccumulator):
    """S6: selections `counts_CN` and tokens `tokens_C` int64 of every cluster.

    Args:
        layers: The layers to fill.
        rule: How often each token counts.
        index: Of the trace.
        most: An upper limit of any cluster's tokens, which decides the type of `counts_CN`.
    """

    kind = field = "documents"
    per_cluster = True

    def __init__(
        self, layers: Mapping[int, LayerSpec], rule: Rule, index: TraceIndex, *, most: int
    ) -> None:
        self.dtype = np.dtype(smallest_type(most))
        super().__init__(layers, rule, index)

    def empty(self, spec: LayerSpec) -> Arrays:
        clusters = self.axes.length("C")
        return {
            "counts_CN": np.zeros((clusters, spec.num_experts), self.dtype),
            "tokens_C": np.zeros(clusters, np.int64),
        }

    def table(self, rows: Rows, layer: int) -> np.ndarray:
        pieces, arrays = rows.pieces(self.rule), self.arrays[layer]
        np.add.at(arrays["tokens_C"], pieces.cluster_P, pieces.tokens_P)
        return arrays["counts_CN"]

    def combine(self, name: str, mine: np.ndarray, other: np.ndarray) -> np.ndarray:
        if name == "tokens_C":
            return np.asarray(mine + other)
        kind = np.promote_types(mine.dtype, other.dtype)
        total = mine.astype(np.int64) + other
        return np.asarray(
            total.astype(np.promote_types(kind, smallest_type(int(total.max(initial=0)))))
        )


def cluster_moments(
    counts_CN: np.ndarray, tokens_C: np.ndarray, group_C: np.ndarray, groups: int
) -> ClusterMoments:
    """S15: sum n to n^5, c, c^2 and c n over the documents of each group.

    They give the variance of every ratio of counts with documents as the unit of sampling, without
    a table of documents, and add up over shards that share no document.
    """
    sums = ClusterMoments.zeros(groups, counts_CN.shape[1])
    member_C = np.flatnonzero((group_C >= 0) & (group_C < groups))
    for start in range(0, len(member_C), _CHUNK):
        some_C = member_C[start : start + _CHUNK]
        group, n_C = group_C[some_C], tokens_C[some_C].astype(np.float64)
        c_CN = counts_CN[some_C].astype(np.float64)
        sums = sums.merged(
            ClusterMoments(
                clusters_S=np.bincount(group, n_C > 0, groups),
                n_S=np.bincount(group, n_C, groups),
                n_square_S=np.bincount(group, n_C * n_C, groups),
                n_power_SP=sums_by_label(n_C[:, None] ** (3, 4, 5), group, groups),
                c_SN=sums_by_label(c_CN, group, groups),
                c_square_SN=sums_by_label(c_CN * c_CN, group, groups),
                cn_SN=sums_by_label(c_CN * n_C[:, None], group, groups),
            )
        )
    return sums


def document_labels(clusters: Clusters, tokens_C: np.ndarray) -> np.ndarray:
    """Return each document's group, -1 for shared prefixes and those without counted tokens."""
    return np.where(clusters.is_prefix_C | (tokens_C == 0), -1, clusters.group_C)
