"""Which loops fill which tables: one pass for all where every row counts once.

Shape suffixes: T tokens of a part, K slots, P pieces, Q pieces cut into blocks, N experts of a
layer, X lags, S groups.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from moe_probe.analysis.kernels.compiled.blocks import fill_blocks
from moe_probe.analysis.kernels.compiled.counting import count_pairs, count_rows, count_slots
from moe_probe.analysis.kernels.compiled.overlaps import count_overlaps
from moe_probe.analysis.kernels.compiled.words import bound_ids
from moe_probe.analysis.kernels.compiled.workspace import kept
from moe_probe.analysis.kernels.tables import (
    CountTables,
    GapTables,
    Loops,
    OverlapTables,
    Tables,
    fill_apart,
)
from moe_probe.analysis.reading.pieces import Pieces

_LOOPS = Loops(count_rows, count_slots, count_pairs, count_overlaps)
_WORD = 64
# Up to so many, the pairs of a token are few enough to be added one by one.
_FEW_SLOTS = 4


def fill(tables: Tables, ids_TK: np.ndarray, pieces: Pieces) -> None:
    """Add the rows of pieces to tables; see `plain.fill`."""
    of_sets = tables.pairs is not None or tables.overlaps is not None
    if not (of_sets or tables.gaps) or (pieces.weight_P > 1).any():
        fill_apart(tables, ids_TK, pieces, _LOOPS)
    elif tables.pairs is not None and ids_TK.shape[1] <= _FEW_SLOTS:
        pairs = Tables(tables.num_experts, pairs=tables.pairs)
        fill_apart(pairs, ids_TK, pieces, _LOOPS)
        _fill_together(replace(tables, pairs=None), ids_TK, pieces)
    else:
        _fill_together(tables, ids_TK, pieces)


def _fill_together(tables: Tables, ids_TK: np.ndarray, pieces: Pieces) -> None:
    num_experts, slots = tables.num_experts, ids_TK.shape[1]
    zeros_P = np.zeros(len(pieces), np.int64)
    counts = tables.counts or CountTables(_nothing(0, num_experts), zeros_P)
    overlaps = tables.overlaps or _no_overlaps(zeros_P)
    gaps = tables.gaps or _no_gaps(num_experts)
    other_SX5 = overlaps.other_SX5 if len(overlaps.repeats_T) else _nothing(0, 0, 5)
    none_NN, none_CN = _nothing(0, num_experts), _nothing(0, num_experts)
    wanted = (
        counts.counts_GN,
        none_CN if tables.documents is None else tables.documents,
        _nothing(slots, num_experts) if tables.slots is None else tables.slots,
        none_NN if tables.pairs is None else tables.pairs,
        (overlaps.sums_SX5, other_SX5, overlaps.lag_X),
        tuple(gaps),
    )
    bounded_TK, width = bound_ids(ids_TK, num_experts)
    words = -(-num_experts // _WORD)
    # No register has three lanes.
    zeros = (0,) * (4 if words == 3 else words)
    spans = kept.spans(pieces, counts.row_P, overlaps.row_P, overlaps.lag_X, overlaps.repeats_T)
    history = int(overlaps.lag_X.max(initial=0))
    paired = 0 if tables.pairs is None else num_experts
    work = kept.workspace(num_experts, slots, width, len(zeros), history, paired)
    is_apart_Q = np.zeros(len(spans[0]), bool)
    fill_blocks(wanted, bounded_TK, spans, work, history, (0,) * slots, zeros, is_apart_Q)
    if is_apart_Q.any():
        _fill_odd(tables, ids_TK, spans, is_apart_Q)


def _fill_odd(
    tables: Tables, ids_TK: np.ndarray, spans: tuple[Any, ...], is_apart_Q: np.ndarray
) -> None:
    """Add the pairs and overlaps of spans where a set cannot say what a faulty row names twice."""
    start_Q, stop_Q, _, cluster_Q, group_Q, run_Q, _ = spans
    # The others count no times: overlaps reach back into them.
    weight_Q, zeros_Q = is_apart_Q.astype(np.int64), np.zeros_like(start_Q)
    pieces = Pieces(start_Q, stop_Q, zeros_Q, weight_Q, zeros_Q, cluster_Q, run_Q > 0)
    overlaps = tables.overlaps._replace(row_P=group_Q) if tables.overlaps else None
    odd = Tables(tables.num_experts, pairs=tables.pairs, overlaps=overlaps)
    fill_apart(odd, ids_TK, pieces, _LOOPS)


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
