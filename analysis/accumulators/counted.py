"""The rows that a rule counts, one by one: for sums that take no kernel.

Shape suffixes: T counted rows, K slots, P pieces, C clusters.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from moe_probe.analysis.reading.pieces import Pieces
from moe_probe.trace import SEGMENTS


@dataclass(frozen=True)
class Counted:
    """Rows of a part that count, in the order of recording."""

    row_T: np.ndarray
    """Number of the row in its part."""
    weight_T: np.ndarray
    """How often it counts, at least once."""
    group_T: np.ndarray
    """Its (task, subject, area)."""
    cluster_T: np.ndarray
    """Its document."""
    start_T: np.ndarray
    """The place in these arrays of the first of its run: consecutive tokens of one document."""

    @classmethod
    def of(cls, pieces: Pieces) -> Counted:
        """Spread out the pieces of a part."""
        row_T, piece_T = pieces.rows()
        begin_P = np.cumsum(pieces.length_P) - pieces.length_P
        first_P = np.maximum.accumulate(np.where(pieces.joins_P, 0, begin_P))
        return cls(
            row_T=row_T,
            weight_T=pieces.weight_P[piece_T].astype(np.int64),
            group_T=pieces.stratum_P[piece_T] // len(SEGMENTS),
            cluster_T=pieces.cluster_P[piece_T],
            start_T=first_P[piece_T],
        )

    def by_weight(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield every weight that occurs, and which of the rows have it: bool [T]."""
        for weight in np.unique(self.weight_T).tolist():
            yield weight, self.weight_T == weight
