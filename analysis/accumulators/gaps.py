"""S12 and S14: idle runs, in any order of the documents. A monoid, not a sum.

What lies inside a document is the same in every order and summed as rows are read; of every
document only where its first and last selection of each expert are is kept. Putting documents one
after another then gives all idle runs of an order, without the rows.

Shape suffixes: C clusters, N experts of a layer, K slots, W windows, H bins, P pieces.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from moe_probe.analysis.accumulators.base import Arrays, TableAccumulator
from moe_probe.analysis.accumulators.documents import smallest_type
from moe_probe.analysis.accumulators.gap_shards import join_shards, local_runs
from moe_probe.analysis.accumulators.stream import refuse_repeats
from moe_probe.analysis.kernels.tables import GapTables
from moe_probe.analysis.reading.index import TraceIndex
from moe_probe.analysis.reading.orders import WINDOWS, Order
from moe_probe.analysis.reading.rules import Rule
from moe_probe.analysis.reading.source import Rows
from moe_probe.trace import LayerSpec

BINS = 65
"""Run length 0, 1, 2-3, 4-7, ...: bin b begins at 2^(b-1)."""


@dataclass(frozen=True)
class IdleRuns:
    """Idle runs of one layer's experts in one order: maximal runs of tokens without the expert.

    All int64. An expert that no token selects has one run, of all tokens, which is its longest,
    leading and current one.
    """

    tokens: int
    longest_N: np.ndarray
    """Longest run, be it at the beginning, at the end or in between."""
    leading_N: np.ndarray
    """Tokens before the first selection."""
    current_N: np.ndarray
    """Tokens after the last selection: the run that is still going on."""
    first_seen_N: np.ndarray
    """Index of the first token that selects the expert; -1 if none does, or inside documents."""
    gap_number_N: np.ndarray
    """Runs between two selections, those of length 0 included."""
    gap_sum_N: np.ndarray
    """Their lengths, summed."""
    gap_square_sum_N: np.ndarray
    """Their squares, summed."""
    runs_WN: np.ndarray
    """Runs of at least W tokens, leading and current ones included."""
    idle_tokens_WN: np.ndarray
    """Tokens in such runs."""
    sliding_WN: np.ndarray
    """Windows of W consecutive tokens that lie in such runs: sum of run - W + 1."""
    histogram_H: np.ndarray
    """Runs between two selections over all experts, by octaves of their length."""


class Gaps(TableAccumulator):
    """S12: where idle runs begin and end.

    Args:
        layers: The layers to fill.
        rule: Which tokens count; each at most once.
        index: Of the trace.
        most: An upper limit of any cluster's tokens.
        windows: Idle-window lengths, in tokens.

    Raises:
        UsageError: the rule counts tokens more than once.
    """

    kind = field = "gaps"
    per_cluster = True

    def __init__(
        self,
        layers: Mapping[int, LayerSpec],
        rule: Rule,
        index: TraceIndex,
        *,
        most: int,
        windows: tuple[int, ...] = WINDOWS,
    ) -> None:
        self.dtype = np.dtype(smallest_type(most + 1))
        self.windows = tuple(sorted(windows))
        super().__init__(layers, rule, index)

    def empty(self, spec: LayerSpec) -> Arrays:
        clusters, experts = self.axes.length("C"), spec.num_experts
        return {
            "first_CN": np.zeros((clusters, experts), self.dtype),
            "after_CN": np.zeros((clusters, experts), self.dtype),
            "next_C": np.zeros(clusters, np.int64),
            "begin_C": np.full(clusters, np.iinfo(np.int64).max, np.int64),
            "square_sum_N": np.zeros(experts, np.int64),
            "longest_N": np.zeros(experts, np.int64),
            "windows_W3N": np.zeros((len(self.windows), 3, experts), np.int64),
            "histogram_H": np.zeros(BINS, np.int64),
        }

    def table(self, rows: Rows, layer: int) -> GapTables:
        pieces, arrays = rows.pieces(self.rule), self.arrays[layer]
        refuse_repeats(pieces.weight_P, "Idle runs", self.rule, "--rule unique")
        first_P = pieces.start_P.astype(np.int64) + rows.first_row
        np.minimum.at(arrays["begin_C"], pieces.cluster_P, first_P)
        filled = {name: arrays[name] for name in GapTables._fields if name in arrays}
        return GapTables(**filled, window_W=np.array(self.windows, np.int64))

    def joined(self, mine: Arrays, theirs: Arrays) -> Arrays:
        """Put the other shard's tokens of each document after ours."""
        return join_shards(mine, theirs, self.windows)

    def settings(self) -> dict[str, Any]:
        return {"windows": self.windows}

    def restore(self, header: dict[str, Any]) -> None:
        self.windows = tuple(header["windows"])

    def runs(self, layer: int, order: Order, counts_N: np.ndarray, kernels: ModuleType) -> IdleRuns:
        """Return the idle runs of one layer in one token order.

        In the order `request-local` no run crosses the end of a document; those at its beginning or
        end, cut short by it, count in `longest_N` and the windows, and the longest of each kind is
        `leading_N` and `current_N`.

        Args:
            layer: Which layer.
            order: The token order.
            counts_N: Selections of each expert, by the same rule.
            kernels: The inner loops.
        """
        arrays = self.arrays[layer]
        names = ("square_sum_N", "longest_N", "windows_W3N", "histogram_H")
        state = {name: arrays[name].copy() for name in names}
        first_seen_N = np.full(len(counts_N), -1, np.int64)
        current_N = np.zeros(len(counts_N), np.int64)
        if order.kind == "request-local":
            ends = local_runs(arrays, state, np.array(self.windows, np.int64))
            gaps_N = counts_N - (arrays["after_CN"] > 0).sum(axis=0)
            span_N = arrays["after_CN"].sum(axis=0, dtype=np.int64) - _sum_first(arrays) - counts_N
            return _as_runs(state, arrays, gaps_N, span_N, first_seen_N, *ends)
        kernels.join_documents(
            arrays["first_CN"],
            arrays["after_CN"],
            arrays["next_C"],
            order.documents(arrays["begin_C"]),
            np.array(self.windows, np.int64),
            state["longest_N"],
            first_seen_N,
            current_N,
            state["square_sum_N"],
            state["windows_W3N"],
            state["histogram_H"],
        )
        gaps_N = np.maximum(counts_N - 1, 0)
        idle_N = int(arrays["next_C"].sum()) - first_seen_N - current_N - counts_N
        span_N = np.where(counts_N > 0, idle_N, 0)
        leading_N = np.where(first_seen_N < 0, arrays["next_C"].sum(), first_seen_N)
        return _as_runs(state, arrays, gaps_N, span_N, first_seen_N, leading_N, current_N)

    def longest(
        self, layer: int, orders: Sequence[Order], counts_N: np.ndarray, kernels: ModuleType
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return longest runs and first selections in several orders, many times faster.

        Returns:
            longest_RN and first_seen_RN as in IdleRuns, and windows_RW3N: runs of at least W
            tokens, the tokens in them, and the windows of W that lie in them.
        """
        arrays = self.arrays[layer]
        experts = len(counts_N)
        shape = (len(orders), *arrays["windows_W3N"].shape)
        windows_RW3N = np.broadcast_to(arrays["windows_W3N"], shape).copy()
        longest_RN = np.tile(arrays["longest_N"], (len(orders), 1))
        first_seen_RN = np.full((len(orders), experts), -1, np.int64)
        tokens = int(arrays["next_C"].sum())
        small = np.int32 if tokens < np.iinfo(np.int32).max else np.int64
        for number, order in enumerate(orders):
            longest_N = longest_RN[number].astype(small)
            kernels.join_longest(
                arrays["first_CN"],
                arrays["after_CN"],
                arrays["next_C"].astype(small),
                order.documents(arrays["begin_C"]),
                np.array(self.windows, np.int64),
                longest_N,
                first_seen_RN[number],
                np.zeros(experts, small),
                windows_RW3N[number],
                int((counts_N > 0).sum()),
            )
            longest_RN[number] = longest_N
        return longest_RN, first_seen_RN, windows_RW3N


def _as_runs(
    state: Arrays,
    arrays: Arrays,
    gaps_N: np.ndarray,
    span_N: np.ndarray,
    first_seen_N: np.ndarray,
    leading_N: np.ndarray,
    current_N: np.ndarray,
) -> IdleRuns:
    # The loops sum squares of inter-arrival times, which are one more than the runs between.
    square_sum_N = state["square_sum_N"] - 2 * span_N - gaps_N
    windows_W3N = state["windows_W3N"]
    return IdleRuns(
        tokens=int(arrays["next_C"].sum()),
        longest_N=state["longest_N"],
        leading_N=leading_N,
        current_N=current_N,
        first_seen_N=first_seen_N,
        gap_number_N=gaps_N,
        gap_sum_N=span_N,
        gap_square_sum_N=square_sum_N,
        runs_WN=windows_W3N[:, 0],
        idle_tokens_WN=windows_W3N[:, 1],
        sliding_WN=windows_W3N[:, 2],
        histogram_H=state["histogram_H"],
    )


def _sum_first(arrays: Arrays) -> np.ndarray:
    first_CN = np.where(arrays["after_CN"] > 0, arrays["first_CN"], 0)
    return np.asarray(first_CN.sum(axis=0, dtype=np.int64))
