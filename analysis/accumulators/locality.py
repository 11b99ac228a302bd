"""S8 and S13: how much of a token's experts its predecessors had, and how uneven batches are.

S8 is additive; shards of S13 join in order of recording.

Shape suffixes: T tokens of a part, N experts of a layer, S groups, X lags, B batch sizes, P pieces.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from types import ModuleType
from typing import Any

import numpy as np

from moe_probe.analysis.accumulators.base import Arrays, TableAccumulator
from moe_probe.analysis.accumulators.stream import StreamAccumulator, joined_bounds
from moe_probe.analysis.kernels.plain import add_batch
from moe_probe.analysis.kernels.tables import OverlapTables
from moe_probe.analysis.reading.index import TraceIndex
from moe_probe.analysis.reading.rules import Rule
from moe_probe.analysis.reading.source import Rows
from moe_probe.trace import LayerSpec

LAGS = (1, 2, 4, 8, 16, 32, 64)
BATCH_SIZES = (256, 1024, 4096, 16384)
_NOTHING = np.zeros(0, np.uint8)


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


class BatchStats(StreamAccumulator):
    """S13 by replay: tokens in recording order are cut into batches of each size.

    `stats_B5` float64: number of full batches, sum of max / mean load, sum of its square, sum of
    the coefficient of variation, sum of 1 / sqrt of the selections. Rows that the model ran several
    times are in one batch.

    Batches are those of the whole stream, wherever it is cut into shards. `bounds` int64 [2] says
    which tokens of the stream a shard has. Of the batch that began before it `head_BN` int64 has
    the shard's selections, of the one still open `current_BN`, less those of smaller sizes.

    Args:
        layers: The layers to fill.
        rule: Which tokens count.
        index: Of the trace.
        sizes: Tokens per batch, ascending; each a multiple of the one before.
        before: Counted tokens of the stream before this shard.
    """

    kind = "batches"

    def __init__(
        self,
        layers: Mapping[int, LayerSpec],
        rule: Rule,
        index: TraceIndex,
        *,
        sizes: tuple[int, ...] = BATCH_SIZES,
        before: int = 0,
    ) -> None:
        self.sizes = sizes
        super().__init__(layers, rule, index, before=before)

    def empty(self, spec: LayerSpec) -> Arrays:
        shape = (len(self.sizes), spec.num_experts)
        return {
            "stats_B5": np.zeros((len(self.sizes), 5)),
            "head_BN": np.zeros(shape, np.int64),
            "current_BN": np.zeros(shape, np.int64),
            "bounds": self.nowhere(),
        }

    def add(self, rows: Rows, layer: int, kernels: ModuleType) -> None:
        arrays, pieces = self.arrays[layer], rows.pieces(self.rule)
        size_B, (begin, stop) = np.array(self.sizes, np.int64), arrays["bounds"]
        kernels.count_batches(
            arrays["stats_B5"],
            arrays["head_BN"],
            arrays["current_BN"],
            # A size holds what the next smaller one has not yet handed on to it.
            np.diff(stop % size_B, prepend=0),
            _is_first(begin, stop, size_B),
            size_B,
            rows.topk_ids(layer),
            pieces,
        )
        arrays["bounds"][1] += pieces.length_P.sum()

    def joined(self, mine: Arrays, theirs: Arrays) -> Arrays:
        """Put the other shard's tokens after ours; raises ValueError if they do not follow."""
        bounds = joined_bounds(mine, theirs)
        (begin, seam), stop = mine["bounds"], theirs["bounds"][1]
        size_B = np.array(self.sizes, np.int64)
        open_BN, tail_BN = (side["current_BN"].cumsum(axis=0) for side in (mine, theirs))
        stats_B5, head_BN = mine["stats_B5"] + theirs["stats_B5"], mine["head_BN"].copy()
        for number, is_first in enumerate(_is_first(begin, seam, size_B)):
            size = self.sizes[number]
            if seam // size == stop // size:
                tail_BN[number] += open_BN[number]
            elif is_first:
                head_BN[number] = open_BN[number] + theirs["head_BN"][number]
            elif seam % size:
                add_batch(stats_B5[number], open_BN[number] + theirs["head_BN"][number])
        return {
            "stats_B5": stats_B5,
            "head_BN": head_BN,
            "current_BN": np.diff(tail_BN, axis=0, prepend=0),
            "bounds": bounds,
        }

    def settings(self) -> dict[str, Any]:
        return {"sizes": self.sizes}

    def restore(self, header: dict[str, Any]) -> None:
        self.sizes = tuple(header["sizes"])


def _is_first(begin: int, stop: int, size_B: np.ndarray) -> np.ndarray:
    """Whether the open batch of each size began before the shard: bool [B]."""
    return np.asarray((begin % size_B > 0) & (begin // size_B == stop // size_B))
