"""Which loops fill which tables: one pass for all where every row counts once.

Shape suffixes: T tokens of a part, K slots, P pieces, Q pieces cut into blocks, N experts of a
layer, X lags, S groups.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from moe_probe.analysis.kernels.compiled.blocks import fill_blocks, workspace
from moe_probe.analysis.kernels.compiled.counting import count_pairs, count_rows, count_slots
from moe_probe.analysis.kernels.compiled.overlaps import count_overlaps
from moe_probe.analysis.kernels.compiled.planes import BLOCK
from moe_probe.analysis.kernels.compiled.words import bound_ids
from moe_probe.analysis.kernels.tables import (
    CountTables,
    GapTables,
    Loops,
    OverlapTables,
    Tables,
    fill_apart,
)
from moe_probe.analysis.pieces import Pieces

_LOOPS = Loops(count_rows, count_slots, count_pairs, count_overlaps)
_WORD = 64
# Up to so many, the pairs of a token are few enough to be added one by one.
_FEW_SLOTS = 4


def fill(tables: Tables, ids_TK: np.ndarray, pieces: Pieces, has_twice: Callable[[], bool]) -> None:
    """Add the rows of pieces to tables; see `plain.fill`."""
    of_sets = tables.pairs is not None or tables.overlaps is not None
    if not (of_sets or tables.gaps) or (pieces.weight_P > 1).any():
        fill_apart(tables, ids_TK, pieces, _LOOPS)
        return
    apart = Tables(tables.num_experts)
    if of_sets and has_twice():
        # A set cannot say that a faulty row names an expert twice.
        apart = replace(apart, pairs=tables.pairs, overlaps=tables.overlaps)
    elif ids_TK.shape[1] <= _FEW_SLOTS:
        apart = replace(apart, pairs=tables.pairs)
    fill_apart(apart, ids_TK, pieces, _LOOPS)
    pairs = tables.pairs if apart.pairs is None else None
    overlaps = tables.overlaps if apart.overlaps is None else None
    _fill_together(replace(tables, pairs=pairs, overlaps=overlaps), ids_TK, pieces)


def _fill_together(tables: Tables, ids_TK: np.ndarray, pieces: Pieces) -> None:
    num_experts, slots = tables.num_experts, ids_TK.shape[1]
    zeros_P = np.zeros(len(pieces), np.int64)
    counts = tables.counts or CountTables(_nothing(0, num_experts), zeros_P)
    overlaps = tables.overlaps or _no_overlaps(zeros_P)
    gaps = tables.gaps or _no_gaps(num_experts)
    none_NN, none_CN = _nothing(0, num_experts), _nothing(0, num_experts)
    wanted = (
        counts.counts_GN,
        none_CN if tables.documents is None else tables.documents,
        _nothing(slots, num_experts) if tables.slots is None else tables.slots,
        none_NN if tables.pairs is None else tables.pairs,
        (overlaps.sums_SX5, overlaps.other_SX5, overlaps.lag_X, overlaps.repeats_T),
        tuple(gaps),
    )
    bounded_TK, width = bound_ids(ids_TK, num_experts)
    zeros = (0,) * -(-num_experts // _WORD)
    spans = _cut_blocks(pieces, counts.row_P, overlaps.row_P)
    history = int(overlaps.lag_X.max(initial=0))
    of_pairs = tables.pairs is not None
    work = workspace(num_experts, slots, width, len(zeros), history, of_pairs=of_pairs)
    fill_blocks(wanted, bounded_TK, spans, work, history, (0,) * slots, zeros)


def _cut_blocks(pieces: Pieces, row_P: np.ndarray, group_P: np.ndarray) -> tuple[Any, ...]:
    """Cut pieces so that none crosses a multiple of a block's counted tokens.

    Returns:
        Of each: first row and row after the last, row of counts, cluster, group, and the tokens
        before it that joined pieces have.
    """
    end_P = np.cumsum(pieces.length_P)
    total = int(end_P[-1]) if len(end_P) else 0
    inner = np.arange(BLOCK, total, BLOCK)
    inner = inner[end_P[np.searchsorted(end_P, inner)] != inner]
    bounds = np.sort(np.concatenate([np.zeros(1, np.int64), end_P, inner]), kind="stable")
    piece_Q = np.searchsorted(end_P, bounds[:-1], side="right")
    shift_Q = (pieces.stop_P - end_P)[piece_Q]
    chain_P = np.maximum.accumulate(np.where(pieces.joins_P, 0, end_P - pieces.length_P))
    facts = (values_P[piece_Q].astype(np.int64) for values_P in (row_P, pieces.cluster_P, group_P))
    return bounds[:-1] + shift_Q, bounds[1:] + shift_Q, *facts, bounds[:-1] - chain_P[piece_Q]


def _nothing(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.int64)


def _no_overlaps(zeros_P: np.ndarray) -> OverlapTables:
    none_SX5, none_X = _nothing(0, 0, 5), _nothing(0)
    return OverlapTables(none_SX5, none_SX5, zeros_P, none_X, np.zeros(0, np.uint8))


def _no_gaps(num_experts: int) -> GapTables:
    none_CN, none_N = _nothing(0, num_experts), _nothing(num_experts)
    return GapTables(
        none_CN, none_CN, _nothing(0), none_N, none_N, _nothing(0, 3, 0), none_N, _nothing(0)
    )
