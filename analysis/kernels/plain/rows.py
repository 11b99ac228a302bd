"""The rows that pieces stand for.

Shape suffixes: T tokens of a part, K slots, P pieces, G rows of a table, N experts of a layer,
C clusters, W windows, X lags, S groups, B batch sizes, L selections.
"""

from __future__ import annotations

import numpy as np

from moe_probe.analysis.reading.pieces import Pieces


def by_weight(pieces: Pieces) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """Rows and their pieces, by weight."""
    groups = []
    for weight in np.unique(pieces.weight_P).tolist():
        groups.append((weight, *pieces.rows(np.flatnonzero(pieces.weight_P == weight))))
    return groups


def run_starts(pieces: Pieces) -> np.ndarray:
    """Row at which the chain of joined pieces begins that each piece belongs to."""
    begins_P = np.where(pieces.joins_P, 0, np.arange(len(pieces)))
    return np.asarray(pieces.start_P[np.maximum.accumulate(begins_P)]) if len(pieces) else begins_P
