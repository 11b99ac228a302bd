"""Selections in tumbling windows of the stream. Joins in order of recording, not a sum.

Shape suffixes: T counted rows, K slots, N experts of a layer, V windows.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np

from moe_probe.analysis.accumulators.base import Arrays
from moe_probe.analysis.accumulators.counted import Counted
from moe_probe.analysis.accumulators.stream import (
    StreamAccumulator,
    joined_bounds,
    refuse_repeats,
)
from moe_probe.analysis.reading.index import TraceIndex
from moe_probe.analysis.reading.rules import Rule
from moe_probe.analysis.reading.source import Rows
from moe_probe.trace import LayerSpec


class WindowCounts(StreamAccumulator):
    """Selections `windows_VN` int64 in windows of W tokens in recording order.

    Windows are those of the whole stream, wherever it is cut into shards; `bounds` int64 [2] says
    which tokens of the stream a shard has. Memory grows with the number of windows.

    Args:
        layers: The layers to fill.
        rule: Which tokens count; each at most once.
        index: Of the trace.
        window: W, in tokens.
        before: Counted tokens of the stream before this shard.

    Raises:
        UsageError: when rows are added that the rule counts more than once.
    """

    kind = "windows"

    def __init__(
        self,
        layers: Mapping[int, LayerSpec],
        rule: Rule,
        index: TraceIndex,
        *,
        window: int,
        before: int = 0,
    ) -> None:
        self.window = window
        super().__init__(layers, rule, index, before=before)

    def empty(self, spec: LayerSpec) -> Arrays:
        shape = (0, spec.num_experts)
        return {
            "windows_VN": np.zeros(shape, np.int64),
            "bounds": self.nowhere(),
        }

    def add(self, rows: Rows, layer: int, kernels: ModuleType) -> None:
        counted, arrays = Counted.of(rows.pieces(self.rule)), self.arrays[layer]
        refuse_repeats(counted.weight_T, "Windows", self.rule)
        experts, (begin, seam) = self.layers[layer].num_experts, arrays["bounds"].tolist()
        stop = seam + len(counted.row_T)
        first = seam // self.window
        window_T = np.arange(seam, stop) // self.window - first
        ids_TK = rows.topk_ids(layer)[counted.row_T]
        flat_TK = window_T[:, None] * experts + ids_TK
        windows = -(-stop // self.window) - first if stop > seam else 0
        found = np.bincount(flat_TK[ids_TK < experts], minlength=windows * experts)
        found_VN = found.reshape(windows, experts)
        arrays["windows_VN"] = self._chained(seam, arrays["windows_VN"], found_VN)
        arrays["bounds"] = np.array([begin, stop], np.int64)

    def full(self, layer: int) -> np.ndarray:
        """Return the windows that have all their tokens: int64 [V, N]."""
        windows_VN, (begin, stop) = self.arrays[layer]["windows_VN"], self.arrays[layer]["bounds"]
        begin_V = (begin // self.window + np.arange(len(windows_VN))) * self.window
        return np.asarray(windows_VN[(begin_V >= begin) & (begin_V + self.window <= stop)])

    def joined(self, mine: Arrays, theirs: Arrays) -> Arrays:
        """Put the other shard's tokens after ours; raises ValueError if they do not follow."""
        bounds = joined_bounds(mine, theirs)
        seam = int(mine["bounds"][1])
        windows_VN = self._chained(seam, mine["windows_VN"], theirs["windows_VN"])
        return {"windows_VN": windows_VN, "bounds": bounds}

    def settings(self) -> dict[str, Any]:
        return {"window": self.window}

    def restore(self, header: dict[str, Any]) -> None:
        self.window = header["window"]

    def _chained(self, seam: int, mine_VN: np.ndarray, later_VN: np.ndarray) -> np.ndarray:
        """Put windows after others; what a seam cuts is one window."""
        if not seam % self.window or not len(mine_VN) or not len(later_VN):
            return np.concatenate([mine_VN, later_VN])
        both_1N = mine_VN[-1:] + later_VN[:1]
        return np.concatenate([mine_VN[:-1], both_1N, later_VN[1:]])
