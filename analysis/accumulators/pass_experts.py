"""Which experts each forward pass used: a set of bits by pass. Joins by OR, in any order.

A pass is 8 bytes for every 64 experts of a layer, and 16 bytes more for all layers together.

Shape suffixes: T counted rows, K slots, N experts of a layer, P passes, X passes of a part,
V words of 64 experts, B bytes of 8, W windows, L idle runs, those of no pass included, S streams.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Self

import numpy as np

from moe_probe.analysis.accumulators.base import Arrays, LayerAccumulator
from moe_probe.analysis.kernels.plain import add_windows
from moe_probe.analysis.reading.index import TraceIndex
from moe_probe.analysis.reading.passes import PassRows, PassTable, add_up, replaced, stream_slices
from moe_probe.analysis.reading.rules import Rule
from moe_probe.analysis.reading.source import Rows
from moe_probe.errors import UsageError
from moe_probe.trace import LayerSpec


@dataclass(frozen=True)
class PassRuns:
    """Idle runs of one layer's experts: maximal runs of consecutive passes of one stream in which
    no counted token selects the expert.

    All int64, in passes. In a stream that never uses the expert all passes are one run.
    """

    passes: int
    """Of all streams."""
    longest_N: np.ndarray
    """Longest run of any stream."""
    leading_N: np.ndarray
    """Longest run at the beginning of a stream."""
    current_N: np.ndarray
    """Longest run at the end of one."""
    runs_WN: np.ndarray
    """Runs of at least W passes, leading and current ones included."""
    idle_passes_WN: np.ndarray
    """Passes in such runs."""
    sliding_WN: np.ndarray
    """Windows of W consecutive passes that lie in such runs: sum of run - W + 1."""


class PassAccumulator(LayerAccumulator):
    """Arrays with a row for each of some passes, which `key_P` names as in `PassTable`.

    Args:
        layers: The layers to fill.
        rule: Which tokens count; each at most once.
        index: Of the trace.
        table: The passes of the trace that run the tokens the rule counts.

    Raises:
        UsageError: when rows are added that the rule counts more than once: other passes ran them
            again, and the trace does not say which.
    """

    def __init__(
        self,
        layers: Mapping[int, LayerSpec],
        rule: Rule,
        index: TraceIndex,
        *,
        table: PassTable,
    ) -> None:
        self.streams = table.streams
        self._table: PassTable | None = table
        super().__init__(layers, rule, index)

    def passes(self, rows: Rows) -> PassRows:
        """Return the counted rows of a part and their passes."""
        if (rows.pieces(self.rule).weight_P > 1).any():
            raise UsageError(
                "Forward passes need every token once, but this trace stores tokens once that "
                f"several of them ran, and the rule {self.rule} counts them all. Use --rule unique."
            )
        return rows.passes(self.rule)

    def merge(self, other: Self) -> None:
        """Add what another shard saw: of a pass that both know parts of, both parts.

        Raises ValueError if its layers, rule or settings differ.
        """
        streams = tuple(sorted({*self.streams, *other.streams}))
        for_all = copy.copy(other)
        for_all.arrays = _in_streams(other.arrays, other.streams, streams)
        self.arrays = _in_streams(self.arrays, self.streams, streams)
        self.streams = for_all.streams = streams
        super().merge(for_all)

    def settings(self) -> dict[str, Any]:
        return {"streams": self.streams}

    def restore(self, header: dict[str, Any]) -> None:
        self.streams, self._table = tuple(header["streams"]), None


class PassExperts(PassAccumulator):
    """Experts used by every pass: bit e % 64 of `used_PV[:, e // 64]`, uint64.

    `key_P` and `tokens_P` are those of the table of passes, the same in every layer.
    """

    kind = "passes"

    def empty(self, spec: LayerSpec) -> Arrays:
        assert self._table is not None
        words = -(-spec.num_experts // 64)
        used_PV = np.zeros((len(self._table.key_P), words), np.uint64)
        return {"key_P": self._table.key_P, "tokens_P": self._table.tokens_P, "used_PV": used_PV}

    def add(self, rows: Rows, layer: int, kernels: ModuleType) -> None:
        found, arrays = self.passes(rows), self.arrays[layer]
        experts, used_PV = self.layers[layer].num_experts, arrays["used_PV"]
        key_X = found.keys(rows.source.trace, self.streams)
        place_X = np.searchsorted(arrays["key_P"], key_X)
        is_used_XN = np.zeros((len(place_X), 64 * used_PV.shape[1]), bool)
        ids_TK = rows.topk_ids(layer)[found.row_T]
        cell_TK = found.place_T[:, None] * is_used_XN.shape[1] + ids_TK
        is_used_XN.ravel()[cell_TK[ids_TK < experts]] = True
        used_PV[place_X] |= np.packbits(is_used_XN, axis=1, bitorder="little").view("<u8")

    def joined(self, mine: Arrays, theirs: Arrays) -> Arrays:
        sides = (mine, theirs)
        key_P, tokens_P = add_up(
            *(np.concatenate([side[name] for side in sides]) for name in ("key_P", "tokens_P"))
        )
        used_PV = np.zeros((len(key_P), mine["used_PV"].shape[1]), np.uint64)
        for side in sides:
            used_PV[np.searchsorted(key_P, side["key_P"])] |= side["used_PV"]
        return {"key_P": key_P, "tokens_P": tokens_P, "used_PV": used_PV}

    def table(self, layer: int) -> PassTable:
        """Return the passes that a layer has seen."""
        arrays = self.arrays[layer]
        return PassTable(self.streams, arrays["key_P"], arrays["tokens_P"])

    def runs(self, layer: int, windows: tuple[int, ...]) -> PassRuns:
        """Return the idle runs of one layer's experts.

        Args:
            layer: Which layer.
            windows: Idle-window lengths, in passes.
        """
        arrays, experts = self.arrays[layer], self.layers[layer].num_experts
        ends_3N = np.zeros((3, experts), np.int64)
        windows_W3N = np.zeros((len(windows), 3, experts), np.int64)
        window_W = np.array(sorted(windows), np.int64)
        used_PB = arrays["used_PV"].astype("<u8").view(np.uint8)
        for some in stream_slices(arrays["key_P"]):
            # Eight experts at a time: all at once would take eight times what the bits do.
            for first in range(0, experts, 8):
                expert_L, run_L = _runs(used_PB[some, first // 8], min(8, experts - first))
                is_first_L = np.diff(expert_L, prepend=-1) != 0
                is_last_L = np.diff(expert_L, append=8) != 0
                add_windows(windows_W3N, window_W, first + expert_L, run_L)
                for number, chosen_L in enumerate((run_L >= 0, is_first_L, is_last_L)):
                    which, run = first + expert_L[chosen_L], run_L[chosen_L]
                    np.maximum.at(ends_3N[number], which, run)
        return PassRuns(len(used_PB), *ends_3N, *(windows_W3N[:, number] for number in range(3)))


def _runs(used_P: np.ndarray, experts: int) -> tuple[np.ndarray, np.ndarray]:
    """Return expert and length of every idle run of one stream, those of no pass included.

    Args:
        used_P: A byte of each pass: bits of up to 8 experts.
        experts: How many.
    """
    is_used_NP = np.ones((experts, len(used_P) + 2), bool)
    is_used_NP[:, 1:-1] = np.unpackbits(used_P[:, None], axis=1, bitorder="little")[:, :experts].T
    expert, place = np.nonzero(is_used_NP)
    is_run = np.diff(expert) == 0
    return expert[1:][is_run], np.diff(place)[is_run] - 1


def _in_streams(
    arrays: dict[int, Arrays], streams: tuple[str, ...], whole: tuple[str, ...]
) -> dict[int, Arrays]:
    """Return arrays with keys by the places of their streams among all."""
    place_S = np.array([whole.index(name) for name in streams], np.int64)
    return {
        layer: {**found, "key_P": replaced(found["key_P"], place_S)}
        for layer, found in arrays.items()
    }
