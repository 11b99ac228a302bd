"""On how many devices each token's experts lie. Additive.

Shape suffixes: T counted rows, K slots, S groups, X numbers of devices, H devices of a token.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np

from moe_probe.analysis.accumulators.base import Arrays, LayerAccumulator
from moe_probe.analysis.accumulators.counted import Counted
from moe_probe.analysis.metrics.coactivation import groups_of_tokens
from moe_probe.analysis.reading.index import TraceIndex
from moe_probe.analysis.reading.rules import Rule
from moe_probe.analysis.reading.source import Rows
from moe_probe.trace import LayerSpec


class DeviceFanout(LayerAccumulator):
    """G7: tokens `fanout_SXH` int64 by group, number of devices, and devices hit, 0 to k.

    Experts lie on devices in contiguous blocks of equal size. Numbers of devices that do not divide
    a layer's experts count nothing there. `slots_SH` has the tokens by number of experts.
    """

    kind = "fanout"

    def __init__(
        self,
        layers: Mapping[int, LayerSpec],
        rule: Rule,
        index: TraceIndex,
        *,
        devices: tuple[int, ...],
    ) -> None:
        self.devices = tuple(devices)
        super().__init__(layers, rule, index)

    def empty(self, spec: LayerSpec) -> Arrays:
        groups, hit = self.axes.length("S"), spec.top_k + 1
        return {
            "fanout_SXH": np.zeros((groups, len(self.devices), hit), np.int64),
            "slots_SH": np.zeros((groups, hit), np.int64),
        }

    def add(self, rows: Rows, layer: int, kernels: ModuleType) -> None:
        counted, arrays = Counted.of(rows.pieces(self.rule)), self.arrays[layer]
        experts = self.layers[layer].num_experts
        ids_TK = rows.topk_ids(layer)[counted.row_T]
        slots_T = (ids_TK < experts).sum(axis=1)
        np.add.at(arrays["slots_SH"], (counted.group_T, slots_T), counted.weight_T)
        for number, devices in enumerate(self.devices):
            if experts % devices == 0:
                table_SH = arrays["fanout_SXH"][:, number]
                hit_T = groups_of_tokens(ids_TK, experts, devices)
                np.add.at(table_SH, (counted.group_T, hit_T), counted.weight_T)

    def settings(self) -> dict[str, Any]:
        return {"devices": self.devices}

    def restore(self, header: dict[str, Any]) -> None:
        self.devices = tuple(header["devices"])
