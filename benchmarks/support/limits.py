"""What this machine can do at most: copy memory, count clocks, count ids that are in the cache."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, uint64

from benchmarks.support.clocks import median_cpu

_COPIED_BYTES = 1 << 28
_STEPS = 1 << 26
# Half a level-2 cache, read again and again.
_IDS, _PASSES, _NUM_EXPERTS = 1 << 19, 64, 256


def measure(rounds: int) -> dict[str, float]:
    """Bytes copied, clocks, and increments of a histogram, each per second of one core."""
    source, target = np.ones(_COPIED_BYTES, np.uint8), np.empty(_COPIED_BYTES, np.uint8)
    ids = np.random.default_rng(0).integers(0, _NUM_EXPERTS, _IDS, dtype=np.uint8)
    table_8N = np.zeros((8, _NUM_EXPERTS), np.uint64)
    return {
        "copied_bytes": _COPIED_BYTES / median_cpu(lambda: np.copyto(target, source), rounds),
        "clocks": 2 * _STEPS / median_cpu(lambda: _chain(np.uint64(1), _STEPS), rounds),
        "increments": _IDS
        * _PASSES
        / median_cpu(lambda: [_count(table_8N, ids) for _ in range(_PASSES)], rounds),
    }


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _chain(value: Any, steps: int) -> Any:
    # Each step needs the result of the one before: two operations of one clock each.
    for _ in range(steps):
        value = (value ^ uint64(0x5BD1E995)) + uint64(0x9E3779B97F4A7C15)
    return value


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _count(table_8N: Any, ids: Any) -> None:
    # Eight tables: an id that comes twice in a row does not wait for itself.
    for i in range(0, len(ids), 8):
        for lane in range(8):
            table_8N[lane, ids[i + lane]] += uint64(1)
