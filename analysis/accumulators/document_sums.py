"""S15 and S16: what intervals need of the documents, without a row for each. Additive.

Shape suffixes: S groups (task, subject, area), N experts of a layer, C clusters, B replicates,
X clusters of a part, P pieces.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Self

import numpy as np

from moe_probe.analysis.accumulators.base import Arrays, LayerAccumulator, TableAccumulator
from moe_probe.analysis.accumulators.documents import DocumentCounts, cluster_moments
from moe_probe.analysis.reading.index import TraceIndex
from moe_probe.analysis.reading.rules import Rule
from moe_probe.analysis.reading.source import Rows
from moe_probe.analysis.statistics.clusters import (
    ClusterMoments,
    poisson_weights,
    replicate_sums,
)
from moe_probe.trace import LayerSpec


class DocumentMoments(TableAccumulator):
    """S15, float64: the sums of `ClusterMoments`, by group.

    A shard has whole documents: those of another are others, whatever they are called. While rows
    are added there is a table of documents; reading, merging or saving makes sums of it.

    Args:
        layers: The layers to fill.
        rule: How often each token counts.
        index: Of the trace.
        most: An upper limit of any cluster's tokens.
    """

    kind, field = "moments", "documents"

    def __init__(
        self, layers: Mapping[int, LayerSpec], rule: Rule, index: TraceIndex, *, most: int
    ) -> None:
        self._documents: DocumentCounts | None = DocumentCounts(layers, rule, index, most=most)
        self._group_C = index.clusters.group_C
        super().__init__(layers, rule, index)

    def empty(self, spec: LayerSpec) -> Arrays:
        return dict(vars(ClusterMoments.zeros(self.axes.length("S"), spec.num_experts)))

    def table(self, rows: Rows, layer: int) -> np.ndarray:
        assert self._documents is not None, "rows are added before the sums are made"
        return self._documents.table(rows, layer)

    def moments(self, layer: int) -> ClusterMoments:
        """Return the sums of one layer, for the functions of `statistics.clusters`."""
        self._close()
        return ClusterMoments(**self.arrays[layer])

    def merge(self, other: Self) -> None:
        """Add the documents of another shard; raises ValueError if its layers or rule differ."""
        self._close()
        other._close()
        super().merge(other)

    def save(self, path: Path) -> None:
        self._close()
        super().save(path)

    def restore(self, header: dict[str, Any]) -> None:
        self._documents = None

    def _close(self) -> None:
        """Make sums of the documents, which are complete."""
        if self._documents is None:
            return
        groups = self.axes.length("S")
        for layer, table in self._documents.arrays.items():
            counts_CN, tokens_C = table["counts_CN"], table["tokens_C"]
            sums = cluster_moments(counts_CN, tokens_C, self._group_C, groups)
            self.arrays[layer] = dict(vars(sums))
        self._documents = None


class Replicates(LayerAccumulator):
    """S16, float64: selections `replicates_BN` and tokens `tokens_B` of bootstrap replicates.

    Whole numbers, exact below 2^53. A document's rows may lie in several shards.

    Args:
        layers: The layers to fill.
        rule: How often each token counts.
        index: Of the trace.
        replicates: B; the b-th draws documents as in `statistics.clusters.poisson_weights`.
    """

    kind = "replicates"

    def __init__(
        self,
        layers: Mapping[int, LayerSpec],
        rule: Rule,
        index: TraceIndex,
        *,
        replicates: int = 200,
    ) -> None:
        self.replicates = replicates
        self._weights_BC = poisson_weights(index.clusters.keys, replicates)
        super().__init__(layers, rule, index)

    def empty(self, spec: LayerSpec) -> Arrays:
        return {
            "replicates_BN": np.zeros((self.replicates, spec.num_experts)),
            "tokens_B": np.zeros(self.replicates),
        }

    def add(self, rows: Rows, layer: int, kernels: ModuleType) -> None:
        pieces, arrays = rows.pieces(self.rule), self.arrays[layer]
        cluster_X, row_P = np.unique(pieces.cluster_P, return_inverse=True)
        counts_XN = np.zeros((len(cluster_X), self.layers[layer].num_experts), np.int64)
        kernels.count_rows(counts_XN, rows.topk_ids(layer), pieces, row_P)
        weights_BX = self._weights_BC[:, cluster_X]
        arrays["replicates_BN"] += replicate_sums(weights_BX, counts_XN)
        arrays["tokens_B"] += weights_BX @ np.bincount(row_P, pieces.tokens_P, len(cluster_X))

    def settings(self) -> dict[str, Any]:
        return {"replicates": self.replicates}

    def restore(self, header: dict[str, Any]) -> None:
        self.replicates = header["replicates"]
