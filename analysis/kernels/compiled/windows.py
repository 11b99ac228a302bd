"""Idle windows: what one run adds to each.

Shape suffixes: N experts of a layer, W windows.
"""

from __future__ import annotations

import numpy as np

from moe_probe.analysis.kernels.compiled.jit import inner_


@inner_
def shortest_of(window_W: np.ndarray) -> np.int64:
    """The shortest window; without any, more than any run."""
    shortest = np.int64(np.iinfo(np.int64).max)
    for window in window_W:
        shortest = min(shortest, np.int64(window))
    return shortest


@inner_
def add_run(windows_W3N: np.ndarray, window_W: np.ndarray, expert: int, run: int) -> None:
    for w in range(len(window_W)):
        if run >= window_W[w]:
            windows_W3N[w, 0, expert] += 1
            windows_W3N[w, 1, expert] += run
            windows_W3N[w, 2, expert] += run - window_W[w] + 1
