"""A token's expert ids as one 64-bit number: loaded once, compared all at once.

Shape suffixes: T tokens of a part, K slots.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from moe_probe.analysis.kernels.compiled.jit import compile_

BYTES = 8


def bound_ids(ids_TK: np.ndarray, num_experts: int) -> tuple[np.ndarray, int]:
    """Return ids, and how many counters it takes to count them without asking if they are valid.

    Ids of no expert have counters of their own, behind those of the experts.
    """
    if ids_TK.itemsize == 1:
        return ids_TK, 256
    return np.minimum(ids_TK, ids_TK.dtype.type(num_experts)), num_experts + 1


def fit_words(ids_TK: np.ndarray) -> bool:
    """Whether a token's ids fit a 64-bit number, a byte each."""
    return ids_TK.itemsize == 1 and ids_TK.shape[1] <= BYTES


def as_words(ids_TK: np.ndarray, blank: int) -> np.ndarray:
    """Return ids as uint64 [T]: slot 0 in the lowest byte, `blank` where there is no slot."""
    if ids_TK.shape[1] == BYTES and ids_TK.flags.c_contiguous:
        return ids_TK.view(np.dtype("<u8"))[:, 0]
    return np.asarray(_make_pack_rows(ids_TK.shape[1])(ids_TK, blank))


@lru_cache
def _make_pack_rows(slots: int) -> Any:
    @compile_
    def pack_rows(ids_TK, blank):
        words_T = np.empty(len(ids_TK), np.uint64)
        for t in range(len(ids_TK)):
            word = np.uint64(0)
            for k in range(BYTES):
                value = np.uint64(ids_TK[t, k]) if k < slots else np.uint64(blank)
                word |= value << np.uint64(8 * k)
            words_T[t] = word
        return words_T

    return pack_rows
