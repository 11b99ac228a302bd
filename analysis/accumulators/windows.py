"""Selections in tumbling windows of the stream. Joins in order of recording, not a sum.

Shape suffixes: T counted rows, K slots, N experts of a layer, V windows.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np

from moe_probe.analysis.accumulators.base import Arrays, LayerAccumulator
from moe_probe.analysis.accumulators.counted import Counted
from moe_probe.analysis.index import TraceIndex
from moe_probe.analysis.rules import Rule
from moe_probe.analysis.source import Rows
from moe_probe.errors import UsageError
from moe_probe.trace import LayerSpec


class WindowCounts(LayerAccumulator):
    """Selections `windows_VN` int64 in windows of W tokens in recording order, and tokens `tokens`.

    Memory grows with the number of windows. Of two shards the windows that are not full are lost.

    Args:
        layers: The layers to fill.
        rule: Which tokens count; each at most once.
        index: Of the trace.
        window: W, in tokens.

    Raises:
        UsageError: when rows are added that the rule counts more than once.
    """

    kind = "windows"

    def __init__(
        self, layers: Mapping[int, LayerSpec], rule: Rule, index: TraceIndex, *, window: int
    ) -> None:
        self.window = window
        super().__init__(layers, rule, index)

    def empty(self, spec: LayerSpec) -> Arrays:
        shape = (0, spec.num_experts)
        return {"windows_VN": np.zeros(shape, np.int64), "tokens": np.zeros(1, np.int64)}

    def add(self, rows: Rows, layer: int, kernels: ModuleType) -> None:
        counted, arrays = Counted.of(rows.pieces(self.rule)), self.arrays[layer]
        if (counted.weight_T > 1).any():
            raise UsageError(
                "Windows need every token once, but this trace stores tokens once that the model "
                f"ran several times, and the rule {self.rule} counts them all. Use the rule unique."
            )
        experts, done = self.layers[layer].num_experts, int(arrays["tokens"][0])
        first, stop = done // self.window, -(-(done + len(counted.row_T)) // self.window)
        window_T = (done + np.arange(len(counted.row_T))) // self.window - first
        ids_TK = rows.topk_ids(layer)[counted.row_T]
        flat_TK = window_T[:, None] * experts + ids_TK
        found = np.bincount(flat_TK[ids_TK < experts], minlength=(stop - first) * experts)
        table_VN = np.zeros((max(stop, len(arrays["windows_VN"])), experts), np.int64)
        table_VN[: len(arrays["windows_VN"])] = arrays["windows_VN"]
        table_VN[first:stop] += found.reshape(-1, experts)
        arrays["windows_VN"] = table_VN
        arrays["tokens"] += len(counted.row_T)

    def full(self, layer: int) -> np.ndarray:
        """Return the windows that have all their tokens: int64 [V, N]."""
        return self._full(self.arrays[layer])

    def joined(self, mine: Arrays, theirs: Arrays) -> Arrays:
        """Put the other shard's windows after ours."""
        windows_VN = np.concatenate([self._full(mine), self._full(theirs)])
        return {"windows_VN": windows_VN, "tokens": np.array([len(windows_VN) * self.window])}

    def settings(self) -> dict[str, Any]:
        return {"window": self.window}

    def restore(self, header: dict[str, Any]) -> None:
        self.window = header["window"]

    def _full(self, arrays: Arrays) -> np.ndarray:
        return arrays["windows_VN"][: int(arrays["tokens"][0]) // self.window]
