"""What a pass over rows works in, made once for the layers that a thread takes one after another.

Shape suffixes: P pieces, Q pieces cut into blocks, T tokens of a part, U those that count, K slots,
N experts of a layer, M all ids that the type holds, W 64-bit words of a set, L selections of a
block in the order of their experts, R rows of octaves, B tokens of a block behind some earlier
ones.
"""

from __future__ import annotations

import math
import threading
from operator import is_not
from typing import Any

import numpy as np

from moe_probe.analysis.kernels.compiled.arrivals import SIXTEEN
from moe_probe.analysis.kernels.compiled.lanes import EIGHT, PLANES
from moe_probe.analysis.kernels.compiled.lists import OCTAVES
from moe_probe.analysis.kernels.compiled.planes import BLOCK, GROUP
from moe_probe.analysis.kernels.compiled.sets import OTHERS, lone_sets
from moe_probe.analysis.reading.pieces import Pieces

_LINE = 64


class _Kept(threading.local):
    """What a thread made for the layer before, which most often is what the next one needs."""

    def __init__(self) -> None:
        self._spans: tuple[Any, ...] = ()
        self._spans_of: tuple[Any, ...] = ()
        self._work: tuple[Any, ...] = ()
        self._work_of: tuple[int, ...] = ()

    def spans(self, *arguments: Any) -> tuple[Any, ...]:
        """Return what `_cut_blocks` makes, anew for other objects."""
        if len(self._spans_of) != len(arguments) or any(map(is_not, self._spans_of, arguments)):
            self._spans, self._spans_of = _cut_blocks(*arguments), arguments
        return self._spans

    def workspace(self, *arguments: int) -> tuple[Any, ...]:
        """Return what `_make_workspace` makes, anew for other shapes."""
        if self._work_of != arguments:
            self._work, self._work_of = _make_workspace(*arguments), arguments
        return self._work


kept = _Kept()


def _cut_blocks(
    pieces: Pieces,
    row_P: np.ndarray,
    group_P: np.ndarray,
    lag_X: np.ndarray,
    repeats_T: np.ndarray,
) -> tuple[Any, ...]:
    """Cut pieces so that none crosses a multiple of a block's counted tokens.

    Returns:
        Of each span: first row and row after the last, row of counts, cluster, group, and the
        tokens before it that joined pieces have. Of each token of these, as bits: x says that its
        document has a token `lag_X[x]` before it, `OTHERS` + x that the text of that one differs.
    """
    end_P = np.cumsum(pieces.length_P)
    total = int(end_P[-1]) if len(end_P) else 0
    inner = np.arange(BLOCK, total, BLOCK)
    inner = inner[end_P[np.searchsorted(end_P, inner)] != inner]
    bounds = np.sort(np.concatenate([np.zeros(1, np.int64), end_P, inner]), kind="stable")
    piece_Q = np.searchsorted(end_P, bounds[:-1], side="right")
    shift_Q = (pieces.stop_P - end_P)[piece_Q]
    facts = (values_P[piece_Q].astype(np.int64) for values_P in (row_P, pieces.cluster_P, group_P))
    chain_P = np.maximum.accumulate(np.where(pieces.joins_P, 0, end_P - pieces.length_P))
    depth_U = np.arange(total, dtype=np.int32)
    depth_U -= np.repeat(chain_P.astype(np.int32), pieces.length_P)
    # All depths beyond the largest lag have the same bits.
    deepest = int(lag_X.max(initial=0))
    bits_D = ((np.arange(deepest + 1)[:, None] >= lag_X) << np.arange(len(lag_X))).sum(axis=1)
    pairs_U = bits_D.astype(np.uint16)[np.minimum(depth_U, deepest, out=depth_U)]
    if len(repeats_T):
        differs_U = ~repeats_T[pieces.rows()[0]]
        pairs_U |= (pairs_U & differs_U) << OTHERS
    run_Q = bounds[:-1] - chain_P[piece_Q]
    return bounds[:-1] + shift_Q, bounds[1:] + shift_Q, *facts, run_Q, pairs_U


def _make_workspace(
    num_experts: int, slots: int, width: int, words: int, history: int, paired: int
) -> tuple[Any, ...]:
    """Arrays that `fill_blocks` works in; made here, since compiled code for it takes long to make.

    Args:
        num_experts: N.
        slots: K.
        width: M.
        words: W.
        history: Tokens before a block that its tokens are compared with.
        paired: Experts whose pairs are counted: all, or 0.
    """
    counts_KM = _aligned(np.uint32, slots, width)
    marks = tuple(_aligned(np.uint32, width) for _ in range(5))
    place_L = _aligned(np.int32, BLOCK * slots + GROUP * width + 2)
    # As many as an expert's runs and what fills them up may take, in whole groups of rows.
    rows = -(-(BLOCK * slots + SIXTEEN * num_experts) // (GROUP * OCTAVES)) * GROUP
    octave_RW = _aligned(np.uint64, rows, OCTAVES // 4)
    octave_L, row_R = octave_RW.reshape(-1).view(np.uint16), np.arange(rows, dtype=np.int32)
    column_M = _aligned(np.uint16, 64 * octave_RW.shape[1])
    planes_HW = _aligned(np.uint64, PLANES, octave_RW.shape[1])
    octaves = octave_L, octave_RW, row_R, column_M, planes_HW, (0,) * octave_RW.shape[1]
    # Tokens are compared in whole groups of eight.
    sets_BW = _aligned(np.uint64, history + BLOCK + EIGHT, words)
    first_B, size_B = _aligned(np.uint16, history + BLOCK), _aligned(np.uint16, history + BLOCK)
    lone_MW = lone_sets(_aligned(np.uint64, width, words), num_experts)
    common_L = _aligned(np.uint16, BLOCK + EIGHT)
    scratch = _aligned(np.uint16, paired, 64 * words), _aligned(np.uint64, PLANES, words)
    sets = sets_BW, first_B, size_B, lone_MW
    return counts_KM, marks, place_L, octaves, sets, common_L, scratch


def _aligned(dtype: Any, *shape: int) -> np.ndarray:
    """Zeros that begin with a line of the cache: no set may lie across two, or loads take twice."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    raw = np.zeros(size + _LINE, np.uint8)
    start = -raw.ctypes.data % _LINE
    return np.asarray(raw[start : start + size].view(dtype).reshape(shape))
