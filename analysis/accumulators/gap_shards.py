"""The monoid of idle runs: how two shards' runs join, document by document.

Shape suffixes: C clusters, N experts of a layer, W windows.
"""

from __future__ import annotations

import numpy as np

from moe_probe.analysis.accumulators.base import Arrays
from moe_probe.analysis.accumulators.documents import smallest_type
from moe_probe.analysis.kernels.plain import add_windows


def join_shards(mine: Arrays, theirs: Arrays, windows: tuple[int, ...]) -> Arrays:
    """Put the tokens that another shard has of each document after ours.

    Tables' rows stand for the same documents; a document that a shard lacks has 0 tokens there. A
    run that crosses the seam of a document is one run between two selections.
    """
    n_C = mine["next_C"]
    first_CN, their_first_CN = (side["first_CN"].astype(np.int64) for side in (mine, theirs))
    after_CN, their_after_CN = (side["after_CN"].astype(np.int64) for side in (mine, theirs))
    seen_CN, they_saw_CN = after_CN > 0, their_after_CN > 0
    both = np.nonzero(seen_CN & they_saw_CN)
    run = n_C[both[0]] - after_CN[both] + their_first_CN[both]
    joined = {
        name: mine[name] + theirs[name] for name in ("square_sum_N", "histogram_H", "windows_W3N")
    }
    joined["longest_N"] = np.maximum(mine["longest_N"], theirs["longest_N"])
    _add_seams(joined, both[1], run, windows)
    joined["begin_C"] = np.where(n_C > 0, mine["begin_C"], theirs["begin_C"])
    joined["next_C"] = n_C + theirs["next_C"]
    later_CN = np.where(they_saw_CN, their_after_CN + n_C[:, None], after_CN)
    earlier_CN = np.where(seen_CN, first_CN, their_first_CN + n_C[:, None])
    dtype = np.dtype(smallest_type(int(joined["next_C"].max(initial=0)) + 1))
    dtype = max((dtype, mine["after_CN"].dtype, theirs["after_CN"].dtype), key=lambda t: t.itemsize)
    is_seen_CN = later_CN > 0
    joined["after_CN"] = later_CN.astype(dtype)
    joined["first_CN"] = np.where(is_seen_CN, earlier_CN, 0).astype(dtype)
    return joined


def _add_seams(
    joined: Arrays, expert: np.ndarray, run: np.ndarray, windows: tuple[int, ...]
) -> None:
    """Count runs across a seam."""
    np.add.at(joined["square_sum_N"], expert, (run + 1) ** 2)
    np.maximum.at(joined["longest_N"], expert, run)
    np.add.at(joined["histogram_H"], _bins(run), 1)
    add_windows(joined["windows_W3N"], np.array(windows, np.int64), expert, run)


def local_runs(
    arrays: Arrays, state: Arrays, window_W: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Complete the state of runs inside documents: no run crosses the end of one.

    The longest run and the windows get the runs at both ends of documents.

    Returns:
        The longest run at the beginning, and at the end, of any document: int64 [N]. One that
        never selects the expert is such a run.
    """
    after_CN, n_C = arrays["after_CN"].astype(np.int64), arrays["next_C"]
    seen_CN = after_CN > 0
    lead_CN = np.where(seen_CN, arrays["first_CN"], n_C[:, None])
    trail_CN = n_C[:, None] - after_CN
    cluster, expert = np.nonzero(seen_CN)
    experts = np.tile(np.arange(after_CN.shape[1]), len(n_C))
    for run, where in ((lead_CN[cluster, expert], expert), (trail_CN.ravel(), experts)):
        np.maximum.at(state["longest_N"], where, run)
        add_windows(state["windows_W3N"], window_W, where, run)
    return lead_CN.max(axis=0, initial=0), trail_CN.max(axis=0, initial=0)


def _bins(run: np.ndarray) -> np.ndarray:
    return np.asarray(np.frexp(run.astype(np.float64))[1])
