"""Flows between all experts of a layer and of the next, and what tables of them foresee. Additive.

Shape suffixes: T counted rows, K slots, N and M experts of two layers, H halves of the documents.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import ModuleType

import numpy as np

from moe_probe.analysis.accumulators.base import Arrays
from moe_probe.analysis.accumulators.counted import Counted
from moe_probe.analysis.accumulators.structure import FlowCounts
from moe_probe.analysis.metrics.transitions import foreseen, set_flows
from moe_probe.analysis.reading.index import TraceIndex
from moe_probe.analysis.reading.rules import Rule
from moe_probe.analysis.reading.source import Rows
from moe_probe.analysis.statistics.clusters import halves
from moe_probe.trace import LayerSpec


class SetFlows(FlowCounts):
    """I1: `set_flows_HNM` int64, pairs of slots, and `next_counts_HM`, the next layer's selections.

    Both by half of the documents, as in `statistics.clusters.halves`; the last layer has no arrays.
    """

    kind = "set_flows"

    def __init__(self, layers: Mapping[int, LayerSpec], rule: Rule, index: TraceIndex) -> None:
        self._half_C = halves(index.clusters.keys)
        super().__init__(layers, rule, index)

    def empty(self, spec: LayerSpec) -> Arrays:
        following = self.following(spec.layer)
        if following is None:
            return {}
        return {
            "set_flows_HNM": np.zeros((2, spec.num_experts, following.num_experts), np.int64),
            "next_counts_HM": np.zeros((2, following.num_experts), np.int64),
        }

    def add(self, rows: Rows, layer: int, kernels: ModuleType) -> None:
        following, arrays = self.following(layer), self.arrays[layer]
        if following is None:
            return
        experts, others = self.layers[layer].num_experts, following.num_experts
        for half, weight, ids_TK, next_ids_TK in self.parts(rows, layer, following.layer):
            flows_NM = set_flows(ids_TK, next_ids_TK, experts, others)
            arrays["set_flows_HNM"][half] += weight * flows_NM
            counts_M = np.bincount(next_ids_TK.ravel(), minlength=others)[:others]
            arrays["next_counts_HM"][half] += weight * counts_M

    def parts(
        self, rows: Rows, layer: int, following: int
    ) -> Iterator[tuple[int, int, np.ndarray, np.ndarray]]:
        """Yield half, weight, and the experts in both layers, of rows that are alike in these."""
        counted = Counted.of(rows.pieces(self.rule))
        half_T = self._half_C[counted.cluster_T]
        ids_TK, next_ids_TK = rows.topk_ids(layer), rows.topk_ids(following)
        for weight, is_alike_T in counted.by_weight():
            for half in (0, 1):
                row_T = counted.row_T[is_alike_T & (half_T == half)]
                yield half, weight, ids_TK[row_T], next_ids_TK[row_T]


class FlowHits(SetFlows):
    """I3: `foreseen_H2` int64: selections that the other half's table foresees, and all.

    Args:
        fitted: The tables.
        index: Of the trace.
    """

    kind = "flow_hits"

    def __init__(self, fitted: SetFlows, index: TraceIndex) -> None:
        self.fitted = fitted
        super().__init__(fitted.layers, fitted.rule, index)

    def empty(self, spec: LayerSpec) -> Arrays:
        return {"foreseen_H2": np.zeros((2, 2), np.int64)} if self.following(spec.layer) else {}

    def add(self, rows: Rows, layer: int, kernels: ModuleType) -> None:
        following = self.following(layer)
        if following is None:
            return
        tables_HNM = self.fitted.arrays[layer]["set_flows_HNM"]
        found_H2 = self.arrays[layer]["foreseen_H2"]
        for half, weight, ids_TK, next_ids_TK in self.parts(rows, layer, following.layer):
            found_H2[half] += weight * np.array(foreseen(tables_HNM[1 - half], ids_TK, next_ids_TK))
