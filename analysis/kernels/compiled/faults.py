"""Rows that look like a fault.

Shape suffixes: T tokens of a part, K slots, E ids that are looked up.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from moe_probe.analysis.kernels.compiled.jit import compile_
from moe_probe.analysis.kernels.compiled.words import as_words, fit_words


def inspect_rows(ids_TK: np.ndarray, num_experts: int, none_id: int) -> np.ndarray:
    found_4 = np.zeros(4, np.int64)
    if fit_words(ids_TK) and ids_TK.max(initial=0) < num_experts:
        ids_TK = _odd_rows(ids_TK)
    stamp_E = np.full(max(num_experts, 256), -1, np.int64)
    _inspect_rows(found_4, stamp_E, ids_TK, num_experts, none_id)
    return found_4


def _odd_rows(ids_TK: np.ndarray) -> np.ndarray:
    """Most rows are sound, and that is seen at once: return the others, to be looked at by id."""
    slots = ids_TK.shape[1]
    return ids_TK[_make_find_odd(slots)(as_words(ids_TK, 0))] if slots > 1 else ids_TK


@lru_cache
def _make_find_odd(slots: int) -> Any:
    ordered = sum(k << (8 * k) for k in range(slots))

    @compile_
    def find_odd(words_T):
        """Rows that name an expert twice, as those of zeros do, or read 0, 1, 2, ..."""
        low, high = np.uint64(0x0101010101010101), np.uint64(0x8080808080808080)
        is_odd_T = np.zeros(len(words_T), np.bool_)
        for t in range(len(words_T)):
            word, found = words_T[t], np.uint64(0)
            for distance in range(1, slots):
                # Byte k against byte k + distance, in the low bytes; a byte of 0 sets a high bit.
                differing = word ^ (word >> np.uint64(8 * distance))
                equal = (differing - low) & ~differing
                found |= equal & (high >> np.uint64(8 * (8 - slots + distance)))
            is_odd_T[t] = found != 0 or word == np.uint64(ordered)
        return is_odd_T

    return find_odd


@compile_
def _inspect_rows(found_4, stamp_E, ids_TK, num_experts, none_id):
    for t in range(len(ids_TK)):
        twice, zero, ordered, foreign = False, True, True, False
        for k in range(ids_TK.shape[1]):
            e = np.int64(ids_TK[t, k])
            zero &= e == 0
            ordered &= e == k
            if e == none_id:
                continue
            foreign |= e >= num_experts
            if e < len(stamp_E):
                twice |= stamp_E[e] == t
                stamp_E[e] = t
        found_4[0] += twice
        found_4[1] += zero
        found_4[2] += ordered
        found_4[3] += foreign
