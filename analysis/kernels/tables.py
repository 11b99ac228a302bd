"""What one pass over a layer's rows fills.

Shape suffixes: T tokens of a part, K slots, P pieces, G rows of a table, C clusters, N experts of a
layer, W windows, H bins, S groups, X lags.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from moe_probe.analysis.reading.pieces import Pieces


class CountTables(NamedTuple):
    """Selections by what a piece belongs to."""

    counts_GN: np.ndarray
    row_P: np.ndarray
    """Row of each piece."""


class OverlapTables(NamedTuple):
    """What tokens share with earlier ones; see `accumulators.locality.Overlaps`."""

    sums_SX5: np.ndarray
    other_SX5: np.ndarray
    """Of pairs whose tokens differ."""
    row_P: np.ndarray
    """Group of each piece."""
    lag_X: np.ndarray
    repeats_T: np.ndarray
    """Bit x says that a token is that of lag x; empty if nobody knows, which leaves `other_SX5`."""


class GapTables(NamedTuple):
    """Idle runs inside clusters; see `accumulators.gaps.Gaps`."""

    first_CN: np.ndarray
    """Where a cluster's first selection of an expert is, from the cluster's beginning."""
    after_CN: np.ndarray
    """Where the token after its last one is; 0 where there is none."""
    next_C: np.ndarray
    """Tokens of each cluster so far."""
    square_sum_N: np.ndarray
    """Squares of inter-arrival times, which are one more than the idle runs between."""
    longest_N: np.ndarray
    windows_W3N: np.ndarray
    histogram_H: np.ndarray
    window_W: np.ndarray


@dataclass
class Tables:
    """Tables of one layer that count the same rows; None is not wanted."""

    num_experts: int
    counts: CountTables | None = None
    documents: np.ndarray | None = None
    """Selections by cluster, [C, N]."""
    slots: np.ndarray | None = None
    """Selections by slot, [K, N]."""
    pairs: np.ndarray | None = None
    """Tokens that select both of two experts: [N, N], symmetric, 0 on the diagonal."""
    overlaps: OverlapTables | None = None
    gaps: GapTables | None = None
    """Every token of its pieces counts once."""


class Loops(NamedTuple):
    """What fills one table each; they take ids [T, K] and pieces behind it."""

    count_rows: Callable[..., Any]
    count_slots: Callable[..., Any]
    count_pairs: Callable[..., Any]
    count_overlaps: Callable[..., Any]


def fill_apart(tables: Tables, ids_TK: np.ndarray, pieces: Pieces, loops: Loops) -> None:
    """Add rows to the tables that add up, each by a loop of its own: all but `gaps`."""
    if tables.counts is not None:
        loops.count_rows(tables.counts.counts_GN, ids_TK, pieces, tables.counts.row_P)
    if tables.documents is not None:
        loops.count_rows(tables.documents, ids_TK, pieces, pieces.cluster_P)
    if tables.slots is not None:
        loops.count_slots(tables.slots, ids_TK, pieces)
    if tables.pairs is not None:
        loops.count_pairs(tables.pairs, ids_TK, pieces)
    if tables.overlaps is not None:
        loops.count_overlaps(tables.overlaps, ids_TK, pieces, tables.num_experts)
