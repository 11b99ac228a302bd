"""Distances between selections, each beside the next one. Joins in order of recording, not a sum.

Shape suffixes: T counted rows, K slots, N experts of a layer, L selections, sorted by expert.
"""

from __future__ import annotations

from types import ModuleType

import numpy as np

from moe_probe.analysis.accumulators.base import Arrays
from moe_probe.analysis.accumulators.counted import Counted
from moe_probe.analysis.accumulators.stream import (
    StreamAccumulator,
    joined_bounds,
    refuse_repeats,
)
from moe_probe.analysis.reading.source import Rows
from moe_probe.trace import LayerSpec


class ArrivalPairs(StreamAccumulator):
    """C6: sums over every two inter-arrival times in a row, x and y, of each expert.

    An inter-arrival time is the distance from one selection to the next, in counted tokens in
    recording order. `sums_6N` int64 has the number of pairs and the sums of x, y, x^2, y^2 and
    x y: exact for streams below 3e9 tokens. `first_2N` and `last_2N` int64 are the tokens of the
    first two and the last two selections, -1 where there are fewer, `bounds` int64 [2] which tokens
    of the stream a shard has.

    Args:
        layers: The layers to fill.
        rule: Which tokens count; each at most once.
        index: Of the trace.
        before: Counted tokens of the stream before this shard.

    Raises:
        UsageError: when rows are added that the rule counts more than once.
    """

    kind = "arrivals"

    def empty(self, spec: LayerSpec) -> Arrays:
        return {
            "sums_6N": np.zeros((6, spec.num_experts), np.int64),
            "first_2N": np.full((2, spec.num_experts), -1, np.int64),
            "last_2N": np.full((2, spec.num_experts), -1, np.int64),
            "bounds": self.nowhere(),
        }

    def add(self, rows: Rows, layer: int, kernels: ModuleType) -> None:
        counted, spec = Counted.of(rows.pieces(self.rule)), self.layers[layer]
        refuse_repeats(counted.weight_T, "Distances between selections", self.rule)
        ids_TK, seam = rows.topk_ids(layer)[counted.row_T], self.arrays[layer]["bounds"][1]
        part = self.empty(spec) | {"bounds": np.array([seam, seam + len(ids_TK)], np.int64)}
        _fill(part, ids_TK, int(seam), spec.num_experts)
        self.arrays[layer] = self.joined(self.arrays[layer], part)

    def joined(self, mine: Arrays, theirs: Arrays) -> Arrays:
        """Put the other shard's tokens after ours; raises ValueError if they do not follow."""
        bounds = joined_bounds(mine, theirs)
        sums_6N = mine["sums_6N"] + theirs["sums_6N"]
        (one_N, two_N), (three_N, four_N) = mine["last_2N"], theirs["first_2N"]
        for token_3N in ((one_N, two_N, three_N), (two_N, three_N, four_N)):
            # The middle one is known where both others are.
            is_known_N = (token_3N[0] >= 0) & (token_3N[2] >= 0)
            x_N, y_N = np.where(is_known_N, np.diff(token_3N, axis=0), 0)
            sums_6N += _terms(is_known_N, x_N, y_N)
        return {
            "sums_6N": sums_6N,
            "first_2N": _two(mine["first_2N"], theirs["first_2N"]),
            "last_2N": _two(theirs["last_2N"][::-1], mine["last_2N"][::-1])[::-1],
            "bounds": bounds,
        }


def _fill(part: Arrays, ids_TK: np.ndarray, begin: int, experts: int) -> None:
    slot_L = np.flatnonzero(ids_TK.ravel() < experts)
    expert_L = ids_TK.ravel()[slot_L]
    order_L = np.argsort(expert_L, kind="stable")
    expert_L, token_L = expert_L[order_L], begin + slot_L[order_L] // ids_TK.shape[1]
    edge_E = np.searchsorted(expert_L, np.arange(experts + 1))
    for place in (0, 1):
        some_N = np.flatnonzero(np.diff(edge_E) > place)
        part["first_2N"][place, some_N] = token_L[edge_E[some_N] + place]
        part["last_2N"][1 - place, some_N] = token_L[edge_E[some_N + 1] - 1 - place]
    is_pair_L = expert_L[2:] == expert_L[:-2]
    x_L, y_L = (np.diff(token_L)[some][is_pair_L] for some in (slice(None, -1), slice(1, None)))
    for sum_N, term_L in zip(part["sums_6N"], _terms(np.ones_like(x_L), x_L, y_L), strict=True):
        np.add.at(sum_N, expert_L[2:][is_pair_L], term_L)


def _terms(number: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.stack([number, x, y, x * x, y * y, x * y])


def _two(earlier_2N: np.ndarray, later_2N: np.ndarray) -> np.ndarray:
    """The first two of both in a row, -1 where there are fewer: what comes first fills up."""
    (one_N, two_N), (three_N, four_N) = earlier_2N, later_2N
    second_N = np.where(one_N >= 0, three_N, four_N)
    return np.stack([np.where(one_N >= 0, one_N, three_N), np.where(two_N >= 0, two_N, second_N)])
