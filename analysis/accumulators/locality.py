"""S8 and S13: how much of a token's experts its predecessors had, and how uneven batches are.

Additive; two shards of S13 lose the batch that was not full at the end of each.

Shape suffixes: T tokens of a part, N experts of a layer, S groups, X lags, B batch sizes, P pieces.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from types import ModuleType
from typing import Any

import numpy as np

from moe_probe.analysis.accumulators.base import Arrays, LayerAccumulator, TableAccumulator
from moe_probe.analysis.index import TraceIndex
from moe_probe.analysis.kernels.tables import OverlapTables
from moe_probe.analysis.rules import Rule
from moe_probe.analysis.source import Rows
from moe_probe.trace import LayerSpec

LAGS = (1, 2, 4, 8, 16, 32, 64)
BATCH_SIZES = (256, 1024, 4096, 16384)


class Overlaps(TableAccumulator):
    """S8: `overlaps_SX5` int64, by group and lag.

    Columns: pairs (t, t - lag) inside one document, sum of |S_t & S_(t-lag)|, pairs with any common
    expert, with equal first slots, with equal sets. With `other_tokens`, also
    `other_token_overlaps_SX5`, of the pairs whose token ids differ. At most eight lags.
    """

    kind = field = "overlaps"

    def __init__(
        self,
        layers: Mapping[int, LayerSpec],
        rule: Rule,
        index: TraceIndex,
        *,
        lags: tuple[int, ...] = LAGS,
        other_tokens: bool = False,
    ) -> None:
        self.lags = lags
        self.other_tokens = other_tokens
        super().__init__(layers, rule, index)

    def empty(self, spec: LayerSpec) -> Arrays:
        shape = (self.axes.length("S"), len(self.lags), 5)
        names = ["overlaps_SX5"] + ["other_token_overlaps_SX5"] * self.other_tokens
        return {name: np.zeros(shape, np.int64) for name in names}

    def table(self, rows: Rows, layer: int) -> OverlapTables:
        pieces, arrays = rows.pieces(self.rule), self.arrays[layer]
        return OverlapTables(
            sums_SX5=arrays["overlaps_SX5"],
            other_SX5=arrays.get("other_token_overlaps_SX5", arrays["overlaps_SX5"]),
            row_P=pieces.group_P,
            lag_X=_array_of(self.lags),
            repeats_T=rows.repeats_T(self.lags) if self.other_tokens else _NOTHING,
        )

    def settings(self) -> dict[str, Any]:
        return {"lags": self.lags, "other_tokens": self.other_tokens}

    def restore(self, header: dict[str, Any]) -> None:
        self.lags, self.other_tokens = tuple(header["lags"]), header["other_tokens"]


@lru_cache
def _array_of(lags: tuple[int, ...]) -> np.ndarray:
    """The same object each time, by which kernels know that what they made of it still holds."""
    return np.array(lags, np.int64)


class BatchStats(LayerAccumulator):
    """S13 by replay: tokens in recording order are cut into batches of each size.

    `stats_B4` float64: number of full batches, sum of max / mean load, sum of its square, sum of
    the coefficient of variation.
    """

    kind = "batches"

    def empty(self, spec: LayerSpec) -> Arrays:
        return {
            "stats_B4": np.zeros((len(BATCH_SIZES), 4)),
            "current_BN": np.zeros((len(BATCH_SIZES), spec.num_experts), np.int64),
            "filled_B": np.zeros(len(BATCH_SIZES), np.int64),
        }

    def add(self, rows: Rows, layer: int, kernels: ModuleType) -> None:
        arrays = self.arrays[layer]
        sizes_B = np.array(BATCH_SIZES, np.int64)
        kernels.count_batches(
            arrays["stats_B4"],
            arrays["current_BN"],
            arrays["filled_B"],
            sizes_B,
            rows.topk_ids(layer),
            rows.pieces(self.rule),
        )

    def combine(self, name: str, mine: np.ndarray, other: np.ndarray) -> np.ndarray:
        # The other shard's open batch is dropped: its tokens do not follow ours.
        return mine + other if name == "stats_B4" else mine


_NOTHING = np.zeros(0, np.uint8)
