"""Rows of two traces that stand for the same token after the same context.

Shape suffixes: S sequences, P pieces of a part, X runs of aligned rows, R stretches of stored rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moe_probe.analysis.comparison.contexts import (
    LENGTH_BITS,
    common_contexts,
    context_marks,
    owners,
)
from moe_probe.analysis.reading.pieces import Pieces
from moe_probe.analysis.reading.source import Part, Source


@dataclass(frozen=True)
class Runs:
    """Runs of rows of one part of the reference, and the rows of the other trace beside them."""

    piece_X: np.ndarray
    """The piece of the reference's rows."""
    row_X: np.ndarray
    """First row in the reference's part."""
    position_X: np.ndarray
    """Position of that row in its sequence."""
    length_X: np.ndarray
    part_X: np.ndarray
    """The other trace's part."""
    other_row_X: np.ndarray
    """First row in that part."""

    def of_part(self, number: int) -> Runs:
        """Only the runs whose other rows are in one part."""
        chosen_X = self.part_X == number
        return Runs(**{name: values[chosen_X] for name, values in vars(self).items()})


class Alignment:
    """Aligned sequences of two traces; small, since rows are looked at part by part.

    Args:
        first: The reference.
        second: The other trace.
    """

    def __init__(self, first: Source, second: Source) -> None:
        token_ids = first.has_token_ids and second.has_token_ids
        marks = (context_marks(source, token_ids=token_ids) for source in (first, second))
        self.partner_S, self.common_S = common_contexts(*marks)
        """Of the reference's sequences."""
        self._owner_S, self._shared_S = owners(second)
        self._stored = _Stored.of(second)

    def __bool__(self) -> bool:
        return bool((self.partner_S >= 0).any())

    def runs(self, part: Part, pieces: Pieces) -> Runs:
        """Return the aligned rows of one part of the reference, of those that count."""
        stretch_P = np.searchsorted(part.stretches.start_R, pieces.start_P, side="right") - 1
        sequence_P = part.stretches.sequence_R[stretch_P]
        begin_P = pieces.position_P
        end_P = np.minimum(begin_P + pieces.length_P, self.common_S[sequence_P])
        piece = np.flatnonzero((self.partner_S[sequence_P] >= 0) & (end_P > begin_P))
        sequence, begin, end = self.partner_S[sequence_P[piece]], begin_P[piece], end_P[piece]
        found = []
        while len(piece):
            own = np.maximum(begin, self._shared_S[sequence])
            found.append(self._stored.find(piece, sequence, own, end))
            # What comes before is stored by another sequence, if by any.
            end = np.minimum(end, self._shared_S[sequence])
            sequence = self._owner_S[sequence]
            goes_on = (end > begin) & (sequence >= 0)
            piece, sequence, begin, end = (v[goes_on] for v in (piece, sequence, begin, end))
        empty = np.empty((5, 0), np.int64)
        piece_X, position_X, length_X, part_X, other_row_X = np.concatenate([empty, *found], axis=1)
        row_X = pieces.start_P[piece_X] + position_X - pieces.position_P[piece_X]
        return Runs(piece_X, row_X, position_X, length_X, part_X, other_row_X)


@dataclass(frozen=True)
class _Stored:
    """Where a trace stores each sequence's rows; sorted by sequence and position."""

    code_R: np.ndarray
    length_R: np.ndarray
    part_R: np.ndarray
    row_R: np.ndarray

    @classmethod
    def of(cls, source: Source) -> _Stored:
        columns = []
        for number, part in enumerate(source.parts):
            rows = part.stretches
            code_R = rows.sequence_R << LENGTH_BITS | rows.position_R
            part_R = np.full(len(code_R), number)
            known_R = rows.sequence_R >= 0
            both = np.stack([code_R, rows.length_R, part_R, rows.start_R])
            columns.append(both[:, known_R])
        table = np.concatenate([np.empty((4, 0), np.int64), *columns], axis=1)
        return cls(*table[:, np.argsort(table[0], kind="stable")])

    def find(
        self, piece: np.ndarray, sequence: np.ndarray, begin: np.ndarray, end: np.ndarray
    ) -> np.ndarray:
        """Look up positions [begin, end): piece, position, length, part and row of what is there.

        A sequence's rows lie together, so what is not in the stretch of the first is nowhere.
        """
        wanted = np.flatnonzero(end > begin)
        code = sequence[wanted] << LENGTH_BITS | begin[wanted]
        place = np.searchsorted(self.code_R, code, side="right") - 1
        known = place >= 0
        wanted, code, place = wanted[known], code[known], place[known]
        offset = code - self.code_R[place]
        length = np.minimum(self.length_R[place] - offset, (end - begin)[wanted])
        is_there = (length > 0) & (self.code_R[place] >> LENGTH_BITS == sequence[wanted])
        rows = np.stack(
            [piece[wanted], begin[wanted], length, self.part_R[place], self.row_R[place] + offset]
        )
        return np.asarray(rows[:, is_there])
