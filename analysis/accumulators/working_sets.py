"""Distinct experts of consecutive tokens, of whatever window lengths. Additive.

Shape suffixes: T counted rows, K slots, S groups, X window lengths.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np

from moe_probe.analysis.accumulators.base import Arrays, LayerAccumulator
from moe_probe.analysis.accumulators.counted import Counted
from moe_probe.analysis.metrics.locality import distinct_experts
from moe_probe.analysis.reading.index import TraceIndex
from moe_probe.analysis.reading.rules import Rule
from moe_probe.analysis.reading.source import Rows
from moe_probe.trace import LayerSpec

WINDOWS = (1, 4, 16, 64, 256)
"""Window lengths of `working_sets`, in tokens."""


class WorkingSets(LayerAccumulator):
    """H5: `sizes_SX2` int64, by group and window length: windows, and the sum of their experts.

    Windows are of consecutive counted tokens of one document, stored in one part; each counts as
    often as its last token.
    """

    kind = "working_sets"

    def __init__(
        self,
        layers: Mapping[int, LayerSpec],
        rule: Rule,
        index: TraceIndex,
        *,
        windows: tuple[int, ...] = WINDOWS,
    ) -> None:
        self.windows = tuple(windows)
        super().__init__(layers, rule, index)

    def empty(self, spec: LayerSpec) -> Arrays:
        shape = (self.axes.length("S"), len(self.windows), 2)
        return {"sizes_SX2": np.zeros(shape, np.int64)}

    def add(self, rows: Rows, layer: int, kernels: ModuleType) -> None:
        counted, table_SX2 = Counted.of(rows.pieces(self.rule)), self.arrays[layer]["sizes_SX2"]
        ids_TK = rows.topk_ids(layer)[counted.row_T]
        experts = self.layers[layer].num_experts
        sizes = distinct_experts(ids_TK, counted.start_T, experts, self.windows)
        for number, size_T in enumerate(sizes):
            is_full_T = size_T >= 0
            group_T, weight_T = counted.group_T[is_full_T], counted.weight_T[is_full_T]
            np.add.at(table_SX2[:, number, 0], group_T, weight_T)
            np.add.at(table_SX2[:, number, 1], group_T, weight_T * size_T[is_full_T])

    def settings(self) -> dict[str, Any]:
        return {"windows": self.windows}

    def restore(self, header: dict[str, Any]) -> None:
        self.windows = tuple(header["windows"])
