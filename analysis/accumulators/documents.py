"""S6, S15 and S16: selections by document, their moments, and their Poisson bootstrap. Additive.

The table of documents is the only one that grows with the trace, up to MAX_CLUSTERS rows; moments
and replicates are made of it, and add up over shards that share no document.

Shape suffixes: C clusters, S groups (task, subject, area), N experts of a layer, B replicates,
P pieces.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType

import numpy as np

from moe_probe.analysis.accumulators.base import Arrays, LayerAccumulator
from moe_probe.analysis.index import Clusters, TraceIndex
from moe_probe.analysis.rules import Rule
from moe_probe.analysis.source import Rows, Source
from moe_probe.trace import LayerSpec

_TYPES = (np.uint8, np.uint16, np.uint32, np.int64)


def smallest_type(most: int) -> type[np.unsignedinteger | np.signedinteger]:  # type: ignore[type-arg]
    """Return the smallest integer type that holds a number."""
    return next(kind for kind in _TYPES if most <= np.iinfo(kind).max)


def cluster_tokens(source: Source, rule: Rule) -> np.ndarray:
    """Return how many tokens of each cluster a rule counts: int64 [C]."""
    tokens_C = np.zeros(len(source.index.clusters), np.int64)
    for part in source.parts:
        pieces = source.pieces(part, rule)
        np.add.at(tokens_C, pieces.cluster_P, pieces.tokens_P)
    return tokens_C


class DocumentCounts(LayerAccumulator):
    """S6: selections `counts_CN` and tokens `tokens_C` int64 of every cluster.

    Args:
        layers: The layers to fill.
        rule: How often each token counts.
        index: Of the trace.
        most: An upper limit of any cluster's tokens, which decides the type of `counts_CN`.
    """

    kind = "documents"
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

    def add(self, rows: Rows, layer: int, kernels: ModuleType) -> None:
        pieces, arrays = rows.pieces(self.rule), self.arrays[layer]
        np.add.at(arrays["tokens_C"], pieces.cluster_P, pieces.tokens_P)
        kernels.count_rows(arrays["counts_CN"], rows.topk_ids(layer), pieces, pieces.cluster_P)

    def combine(self, name: str, mine: np.ndarray, other: np.ndarray) -> np.ndarray:
        if name == "tokens_C":
            return mine + other
        kind = np.promote_types(mine.dtype, other.dtype)
        total = mine.astype(np.int64) + other
        return total.astype(np.promote_types(kind, smallest_type(int(total.max(initial=0)))))


class Moments:
    """S15: sums over documents of n, n^2, c, c^2 and c n, by group. float64.

    They give the variance of every ratio of counts with documents as the unit of sampling, without
    a table of documents.

    Args:
        groups: Number of groups S.
        num_experts: N.
    """

    def __init__(self, groups: int, num_experts: int) -> None:
        self.clusters_S = np.zeros(groups)
        """Documents with at least one token."""
        self.n_S = np.zeros(groups)
        self.n_square_S = np.zeros(groups)
        self.c_SN = np.zeros((groups, num_experts))
        self.c_square_SN = np.zeros((groups, num_experts))
        self.cn_SN = np.zeros((groups, num_experts))

    def update(self, counts_CN: np.ndarray, tokens_C: np.ndarray, group_C: np.ndarray) -> None:
        """Add documents: their selections, tokens, and group."""
        order_C = np.argsort(group_C, kind="stable")
        groups, start = np.unique(group_C[order_C], return_index=True)
        n_C, c_CN = tokens_C[order_C].astype(np.float64), counts_CN[order_C].astype(np.float64)
        self.clusters_S[groups] += np.add.reduceat(n_C > 0, start, dtype=np.float64)
        self.n_S[groups] += np.add.reduceat(n_C, start)
        self.n_square_S[groups] += np.add.reduceat(n_C * n_C, start)
        self.c_SN[groups] += np.add.reduceat(c_CN, start)
        self.cn_SN[groups] += np.add.reduceat(c_CN * n_C[:, None], start)
        self.c_square_SN[groups] += np.add.reduceat(c_CN * c_CN, start)

    def merge(self, other: Moments) -> None:
        """Add the moments of other documents."""
        for name, array in vars(other).items():
            getattr(self, name).__iadd__(array)


def document_labels(clusters: Clusters, tokens_C: np.ndarray) -> np.ndarray:
    """Return each document's group, -1 for shared prefixes and those without counted tokens."""
    return np.where(clusters.is_prefix_C | (tokens_C == 0), -1, clusters.group_C)
