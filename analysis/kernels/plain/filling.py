"""Which loops fill which tables: one for each.

Shape suffixes: T tokens of a part, K slots.
"""

from __future__ import annotations

import numpy as np

from moe_probe.analysis.kernels.plain.counting import count_pairs, count_rows, count_slots
from moe_probe.analysis.kernels.plain.idle import trace_gaps
from moe_probe.analysis.kernels.plain.overlaps import count_overlaps
from moe_probe.analysis.kernels.tables import Loops, Tables, fill_apart
from moe_probe.analysis.reading.pieces import Pieces

_LOOPS = Loops(count_rows, count_slots, count_pairs, count_overlaps)


def fill(tables: Tables, ids_TK: np.ndarray, pieces: Pieces) -> None:
    """Add the rows of pieces to those tables that are wanted, each as often as its piece counts.

    Args:
        tables: What to add to.
        ids_TK: Expert ids. Those of N and more, empty slots among them, are not counted.
        pieces: The rows, which count.
    """
    fill_apart(tables, ids_TK, pieces, _LOOPS)
    if tables.gaps is not None:
        trace_gaps(tables.gaps, ids_TK, pieces)
