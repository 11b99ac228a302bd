"""Which loops fill which tables: one for each.

Shape suffixes: T tokens of a part, K slots.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from moe_probe.analysis.kernels.plain.counting import count_pairs, count_rows, count_slots
from moe_probe.analysis.kernels.plain.idle import trace_gaps
from moe_probe.analysis.kernels.plain.overlaps import count_overlaps
from moe_probe.analysis.kernels.tables import Tables
from moe_probe.analysis.pieces import Pieces


def fill(tables: Tables, ids_TK: np.ndarray, pieces: Pieces, has_twice: Callable[[], bool]) -> None:
    """Add the rows of pieces to those tables that are wanted, each as often as its piece counts.

    Args:
        tables: What to add to.
        ids_TK: Expert ids. Those of N and more, empty slots among them, are not counted.
        pieces: The rows, which count.
        has_twice: Whether a faulty row names an expert twice; asked only if loops need to know.
    """
    if tables.counts is not None:
        count_rows(tables.counts.counts_GN, ids_TK, pieces, tables.counts.row_P)
    if tables.documents is not None:
        count_rows(tables.documents, ids_TK, pieces, pieces.cluster_P)
    if tables.slots is not None:
        count_slots(tables.slots, ids_TK, pieces)
    if tables.pairs is not None:
        count_pairs(tables.pairs, ids_TK, pieces)
    if tables.overlaps is not None:
        count_overlaps(tables.overlaps, ids_TK, pieces, tables.num_experts)
    if tables.gaps is not None:
        trace_gaps(tables.gaps, ids_TK, pieces)
