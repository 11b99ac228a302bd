"""Which loops fill which tables: one for each.

Shape suffixes: T tokens of a part, K slots.
"""

from __future__ import annotations

import numpy as np

from moe_probe.analysis.kernels.plain.counting import count_pairs, count_rows, count_slots
from moe_probe.analysis.kernels.plain.idle import trace_gaps
from moe_probe.analysis.kernels.plain.overlaps import count_overlaps
from moe_probe.analysis.kernels.tables import Tables
from moe_probe.analysis.pieces import Pieces


def fill(tables: Tables, ids_TK: np.ndarray, pieces: Pieces) -> None:
    """Add the rows of pieces to those tables that are wanted, each as often as its piece counts.

    Ids of N and more, empty slots among them, are not counted.
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
