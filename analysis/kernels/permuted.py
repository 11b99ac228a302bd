"""Mutual information under many labellings of the documents, compiled.

Shape suffixes: C documents, S labels, N experts, R labellings, P chunks of documents.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from numba import njit

_compile: Callable[[Any], Any] = njit(nogil=True, cache=True, error_model="numpy")
# Logarithms of most counts come from a table; of those beyond it, from the function.
_TABLE = 1 << 16


def expert_information(counts_CN: np.ndarray, label_RC: np.ndarray, num_labels: int) -> np.ndarray:
    """Return I_e in bits under each labelling, float64 [R, N]; NaN where nothing was selected.

    Additions dominate. In 16 bits twice as many fit into an instruction as in 32, so documents
    come in chunks whose sums cannot pass 16 bits.

    Args:
        counts_CN: Selections of each expert in each document, integers.
        label_RC: Labels of the documents, unsigned, below `num_labels`.
        num_labels: S.
    """
    most_C = counts_CN.max(axis=1, initial=0).astype(np.int64)
    is_small = most_C.max(initial=0) < 1 << 15
    # A chunk starts where the running sum passes a multiple of 2^15: it stays below 2^16.
    chunk_C = np.cumsum(most_C) >> 15 if is_small else np.zeros_like(most_C)
    stop_P = np.append(np.flatnonzero(np.diff(chunk_C)) + 1, len(most_C))
    shape = (num_labels, counts_CN.shape[1])
    sum_SN = np.zeros(shape, np.uint32 if most_C.sum() < 1 << 32 else np.uint64)
    information_RN = np.empty((len(label_RC), counts_CN.shape[1]))
    _fill(
        information_RN,
        np.ascontiguousarray(counts_CN, np.min_scalar_type(most_C.max(initial=0))),
        np.ascontiguousarray(label_RC),
        stop_P,
        np.empty(shape, np.uint16 if is_small else np.uint64),
        sum_SN,
        _x_log_x(),
    )
    # Of the last labelling; of all experts, every labelling has the same sums.
    total_N = sum_SN.sum(axis=0, dtype=np.int64)
    total = total_N.sum()
    expert_N = total_N * np.log2(np.maximum(total_N, 1))
    bits_RN = (information_RN - expert_N) / (total if total else np.nan)
    return np.asarray(np.maximum(bits_RN, 0.0))


@lru_cache(maxsize=1)
def _x_log_x() -> np.ndarray:
    x = np.arange(_TABLE, dtype=np.float64)
    return np.asarray(x * np.log2(np.maximum(x, 1)))


@_compile
def _fill(
    information_RN: np.ndarray,
    counts_CN: np.ndarray,
    label_RC: np.ndarray,
    stop_P: np.ndarray,
    chunk_SN: np.ndarray,
    sum_SN: np.ndarray,
    x_log_x: np.ndarray,
) -> None:
    """Set sum_S c log2 c - c log2 q_S of every expert, with c its count under the label."""
    num_labels, num_experts = sum_SN.shape
    for labelling in range(len(label_RC)):
        sum_SN[:] = 0
        start = 0
        for stop in stop_P:
            chunk_SN[:] = 0
            for document in range(start, stop):
                label = label_RC[labelling, document]
                for expert in range(num_experts):
                    chunk_SN[label, expert] += counts_CN[document, expert]
            for label in range(num_labels):
                for expert in range(num_experts):
                    sum_SN[label, expert] += chunk_SN[label, expert]
            start = stop
        total = sum_SN.sum()
        information_RN[labelling] = 0
        for label in range(num_labels):
            share = sum_SN[label].sum() / total
            log_share = np.log2(share) if share > 0 else 0.0
            for expert in range(num_experts):
                count = sum_SN[label, expert]
                term = x_log_x[count] if count < len(x_log_x) else count * np.log2(count)
                information_RN[labelling, expert] += term - count * log_share
