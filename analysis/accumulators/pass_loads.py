"""S13 in the forward passes that the engine ran: how uneven each one's load is. Additive.

Shape suffixes: T counted rows, K slots, N experts of a layer, P passes that are not complete,
X passes, D numbers of devices, B octaves of tokens, H bins.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

import numpy as np

from moe_probe.analysis.accumulators.base import Arrays
from moe_probe.analysis.accumulators.pass_experts import PassAccumulator
from moe_probe.analysis.metrics.devices import device_loads
from moe_probe.analysis.reading.index import TraceIndex
from moe_probe.analysis.reading.passes import PassTable
from moe_probe.analysis.reading.rules import Rule
from moe_probe.analysis.reading.source import Rows
from moe_probe.trace import LayerSpec

OCTAVES = 32
"""Passes of 1, 2-3, 4-7, ... tokens: octave b begins at 2^b."""
BINS = 100
"""Of mean / max, which lies in (0, 1]."""
_FEW = 1 << 12
"""Passes whose counts are made at a time."""
_OPEN = ("key_P", "filled_P", "total_P", "counts_PN")


class PassLoads(PassAccumulator):
    """Loads of forward passes by their counted tokens, for several numbers of devices.

    Per octave `passes_B2` int64, passes and their tokens; per number of devices and octave
    `ratio_DB3` float64, sums of max / mean, of its square and of mean / max, and `even_DBH` int64,
    passes by mean / max. The first number of devices is that of the layer's experts. A pass that
    selects nothing is left out.

    A pass whose rows are not all here waits in `key_P`, `filled_P`, `total_P` and `counts_PN`
    int64, until those of other shards complete it.

    Args:
        layers: The layers to fill.
        rule: Which tokens count; each at most once.
        index: Of the trace.
        table: The passes of the trace, complete.
        devices: Numbers of devices with equally many consecutive experts each; one that does not
            divide a layer's experts counts nothing there.
    """

    kind = "pass_loads"

    def __init__(
        self,
        layers: Mapping[int, LayerSpec],
        rule: Rule,
        index: TraceIndex,
        *,
        table: PassTable,
        devices: tuple[int, ...] = (),
    ) -> None:
        self.devices = tuple(devices)
        super().__init__(layers, rule, index, table=table)

    def empty(self, spec: LayerSpec) -> Arrays:
        numbers = 1 + len(self.devices)
        return {
            "passes_B2": np.zeros((OCTAVES, 2), np.int64),
            "ratio_DB3": np.zeros((numbers, OCTAVES, 3)),
            "even_DBH": np.zeros((numbers, OCTAVES, BINS), np.int64),
            **{name: np.zeros(0, np.int64) for name in _OPEN[:3]},
            "counts_PN": np.zeros((0, spec.num_experts), np.int64),
        }

    def add(self, rows: Rows, layer: int, kernels: ModuleType) -> None:
        assert self._table is not None, "rows are added before anything is read from a file"
        found, experts = self.passes(rows), self.layers[layer].num_experts
        key_X = found.keys(rows.source.trace, self.streams)
        total_X = self._table.tokens_P[np.searchsorted(self._table.key_P, key_X)]
        ids_TK = rows.topk_ids(layer)[found.row_T]
        for start in range(0, len(key_X), _FEW):
            some = slice(start, start + _FEW)
            is_here_T = (found.place_T >= start) & (found.place_T < start + _FEW)
            cell_TK = (found.place_T[is_here_T, None] - start) * experts + ids_TK[is_here_T]
            cells = cell_TK[ids_TK[is_here_T] < experts]
            counts = np.bincount(cells, minlength=len(key_X[some]) * experts)
            here = (key_X[some], found.tokens_X[some], total_X[some], counts.reshape(-1, experts))
            arrays, more = self.arrays[layer], dict(zip(_OPEN, here, strict=True))
            self.arrays[layer] = self._closed(arrays, arrays, more)

    def joined(self, mine: Arrays, theirs: Arrays) -> Arrays:
        sums = {name: mine[name] + theirs[name] for name in mine if name not in _OPEN}
        return self._closed(sums, mine, theirs)

    def units(self, num_experts: int) -> Iterator[tuple[int, int]]:
        """Yield row and number of every D that holds equally many of a layer's experts."""
        for place, number in enumerate((num_experts, *self.devices)):
            if num_experts % number == 0:
                yield place, number

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"devices": self.devices}

    def restore(self, header: dict[str, Any]) -> None:
        super().restore(header)
        self.devices = tuple(header["devices"])

    def _closed(self, sums: Arrays, one: Arrays, other: Arrays) -> Arrays:
        """Bring two sides' passes together, and add those that are complete now to the sums."""
        key_X, filled_X, total_X, counts_XN = (
            np.concatenate([one[name], other[name]]) for name in _OPEN
        )
        order_X = np.argsort(key_X, kind="stable")
        first = np.flatnonzero(np.diff(key_X[order_X], prepend=-1))
        if len(first):
            filled_X = np.add.reduceat(filled_X[order_X], first)
            counts_XN = np.add.reduceat(counts_XN[order_X], first, axis=0)
        key_X, total_X = key_X[order_X][first], total_X[order_X][first]
        is_whole_X = filled_X == total_X
        is_used_X = is_whole_X & counts_XN.any(axis=1)
        self._add_passes(sums, total_X[is_used_X], counts_XN[is_used_X])
        left = (array[~is_whole_X] for array in (key_X, filled_X, total_X, counts_XN))
        return sums | dict(zip(_OPEN, left, strict=True))

    def _add_passes(self, sums: Arrays, tokens_X: np.ndarray, counts_XN: np.ndarray) -> None:
        octave_X = np.frexp(tokens_X.astype(np.float64))[1] - 1
        np.add.at(sums["passes_B2"], octave_X, np.stack([np.ones_like(tokens_X), tokens_X], axis=1))
        for place, number in self.units(counts_XN.shape[1]):
            load_XD = device_loads(counts_XN, number)
            ratio_X = load_XD.max(axis=1) / load_XD.mean(axis=1)
            found_X3 = np.stack([ratio_X, ratio_X**2, 1 / ratio_X], axis=1)
            np.add.at(sums["ratio_DB3"][place], octave_X, found_X3)
            # In whole numbers, so that a value on a bin's edge is in the same bin everywhere.
            bin_X = BINS * load_XD.sum(axis=1) // (number * load_XD.max(axis=1))
            bin_X = np.minimum(bin_X, BINS - 1)
            np.add.at(sums["even_DBH"][place], (octave_X, bin_X), 1)
