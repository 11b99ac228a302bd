"""A sample of stored rows, to compare the layers of one row and rows of equal or adjoining tokens.

Shape suffixes: T tokens of a part, R stretches of a part, E rows of the sample, L layers, K slots;
3 is the token before a row's own, its own, and the token behind.
"""

from __future__ import annotations

from types import ModuleType

import numpy as np

from moe_probe.analysis.accumulators.repeats import fingerprints
from moe_probe.analysis.reading.source import Rows, Source

MOST_ROWS = 1 << 15
# Rows in a row: enough neighbours to compare, and not so many that whole documents are missed.
_BLOCK = 64


class RowSample:
    """Blocks of rows from all over a trace: fingerprints of their experts, and their tokens.

    Args:
        source: The rows of the trace.
        most: Rows to take; all where there are no more.
    """

    weights = False
    lookahead = False

    def __init__(self, source: Source, *, most: int = MOST_ROWS) -> None:
        self.layers = source.layers
        self._place = {layer: place for place, layer in enumerate(self.layers)}
        self.row_E = _spread(sum(part.stretches.rows for part in source.parts), most)
        rows = len(self.row_E)
        self.prints_LE = np.zeros((len(self.layers), rows), np.uint32)
        """Fingerprints of the experts of each row, order of slots aside."""
        self.first_layer = next(iter(self.layers))
        spec = self.layers[self.first_layer]
        self.ids_EK = np.zeros((rows, spec.top_k), spec.dtype)
        """Expert ids of the first layer."""
        self.tokens_3E = np.full((3, rows), -1, np.int32)
        """Vocabulary ids; -1 where they are not stored, or not in the same stretch."""
        self.follows_E = np.zeros(rows, bool)
        """Whether the row before in the sample is the row before in the sequence."""
        self.is_generated_E = np.zeros(rows, bool)

    def add(self, rows: Rows, layer: int, kernels: ModuleType) -> None:
        """Note one layer of a part."""
        bounds = np.searchsorted(self.row_E, [rows.first_row, rows.first_row + len(rows)])
        here = slice(*bounds.tolist())
        row_E = self.row_E[here] - rows.first_row
        ids_EK = rows.topk_ids(layer)[row_E]
        self.prints_LE[self._place[layer], here] = fingerprints(ids_EK)
        if layer == self.first_layer and len(row_E):
            self.ids_EK[here] = ids_EK
            self._note_tokens(rows, row_E, here)

    def _note_tokens(self, rows: Rows, row_E: np.ndarray, here: slice) -> None:
        stretches = rows.part.stretches
        token_id_T = rows.source.token_ids(rows.part)
        stretch_E = np.searchsorted(stretches.start_R, row_E, side="right") - 1
        start_E = stretches.start_R[stretch_E]
        stop_E = start_E + stretches.length_R[stretch_E]
        before_E, behind_E = np.maximum(row_E - 1, 0), np.minimum(row_E + 1, len(rows) - 1)
        self.tokens_3E[0, here] = np.where(row_E > start_E, token_id_T[before_E], -1)
        self.tokens_3E[1, here] = token_id_T[row_E]
        self.tokens_3E[2, here] = np.where(row_E + 1 < stop_E, token_id_T[behind_E], -1)
        self.follows_E[here] = (row_E > start_E) & (np.diff(row_E, prepend=-2) == 1)
        # Rows of sequences that the trace lacks have no prompt.
        prompt_S = np.append(rows.index.ends_S4[:, 3], 0)
        position_E = row_E - start_E + stretches.position_R[stretch_E]
        self.is_generated_E[here] = position_E >= prompt_S[stretches.sequence_R[stretch_E]]


def _spread(rows: int, most: int) -> np.ndarray:
    """Number rows to take, in blocks that lie evenly apart: int64, ascending."""
    if rows <= most:
        return np.arange(rows)
    start = np.linspace(0, rows - _BLOCK, most // _BLOCK).astype(np.int64)
    return np.asarray(start[:, None] + np.arange(_BLOCK)).ravel()
