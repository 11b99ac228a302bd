"""F1: selections by half of the documents, segment of the prompt and octave of position. Additive.

Shape suffixes: H halves of the documents, X segments, B octaves of position, N experts of a layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType

import numpy as np

from moe_probe.analysis.accumulators.base import Arrays, LayerAccumulator
from moe_probe.analysis.accumulators.structure import POSITION_BINS
from moe_probe.analysis.reading.index import TraceIndex
from moe_probe.analysis.reading.rules import Rule
from moe_probe.analysis.reading.source import Rows
from moe_probe.analysis.statistics.clusters import halves
from moe_probe.trace import SEGMENTS, LayerSpec


class SegmentPositions(LayerAccumulator):
    """`counts_HXBN` int64; halves as in `statistics.clusters.halves`."""

    kind = "segment_positions"

    def __init__(self, layers: Mapping[int, LayerSpec], rule: Rule, index: TraceIndex) -> None:
        self._half_C = halves(index.clusters.keys)
        super().__init__(layers, rule, index)

    def empty(self, spec: LayerSpec) -> Arrays:
        shape = 2, len(SEGMENTS), POSITION_BINS, spec.num_experts
        return {"counts_HXBN": np.zeros(shape, np.int64)}

    def add(self, rows: Rows, layer: int, kernels: ModuleType) -> None:
        pieces, bin_P = rows.octaves(self.rule)
        segment_P = pieces.stratum_P % len(SEGMENTS)
        half_P = self._half_C[pieces.cluster_P]
        table_P = (half_P * len(SEGMENTS) + segment_P) * POSITION_BINS + bin_P
        counts_HXBN = self.arrays[layer]["counts_HXBN"]
        flat = counts_HXBN.reshape(-1, counts_HXBN.shape[-1])
        kernels.count_rows(flat, rows.topk_ids(layer), pieces, table_P)
