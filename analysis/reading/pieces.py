"""The rows of one part as runs of tokens that count alike: all that the kernels need to know.

Shape suffixes: T tokens of a part, R stretches of consecutive positions of one sequence, P pieces.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property

import numpy as np

from moe_probe.analysis.reading.index import TraceIndex
from moe_probe.analysis.reading.rules import Located, Rule, locate, weigh
from moe_probe.errors import TraceError
from moe_probe.trace import SEGMENTS


@dataclass(frozen=True)
class Stretches:
    """Which rows of a part belong to which sequence, at which positions."""

    sequence_R: np.ndarray
    """Index of the sequence in the trace's index; -1 for rows of sequences that are not there."""
    start_R: np.ndarray
    """First row."""
    position_R: np.ndarray
    """Position of that row in its sequence."""
    rows: int

    @property
    def length_R(self) -> np.ndarray:
        return np.diff(self.start_R, append=self.rows)

    def tokens(self) -> tuple[np.ndarray, np.ndarray]:
        """Return sequence (index, or -1) and position of each row: two int64 [T]."""
        sequence_T = np.repeat(self.sequence_R, self.length_R)
        shift_T = np.repeat(self.position_R - self.start_R, self.length_R)
        return sequence_T, np.arange(self.rows) + shift_T

    @classmethod
    def of(cls, index: TraceIndex, sequence_id_T: np.ndarray, position_T: np.ndarray) -> Stretches:
        """Find the stretches; raises TraceError for a row outside its sequence."""
        is_start_T = np.ones(len(sequence_id_T), bool)
        is_start_T[1:] = sequence_id_T[1:] != sequence_id_T[:-1]
        is_start_T[1:] |= np.diff(position_T) != 1
        start_R = np.flatnonzero(is_start_T)
        ids_R, position_R = sequence_id_T[start_R], position_T[start_R].astype(np.int64)
        found_R = np.searchsorted(index.sequence_id_S, ids_R)
        found_R = np.minimum(found_R, len(index.sequence_id_S) - 1)
        is_known_R = np.zeros(len(ids_R), bool)
        if len(index.sequence_id_S):
            is_known_R = index.sequence_id_S[found_R] == ids_R
        stretches = cls(np.where(is_known_R, found_R, -1), start_R, position_R, len(sequence_id_T))
        stop_R = position_R + stretches.length_R
        known_R = found_R[is_known_R]
        if (position_R[is_known_R] < 0).any() or (
            stop_R[is_known_R] > index.num_tokens_S[known_R]
        ).any():
            raise TraceError("The trace has rows beyond the end of their sequence: it is damaged.")
        return stretches


@dataclass(frozen=True)
class Pieces:
    """Maximal runs of rows of one sequence and stratum that count equally often, and do count.

    All int32: those of every part and rule are kept while a trace is scanned.
    """

    start_P: np.ndarray
    """First row."""
    stop_P: np.ndarray
    """Row after the last."""
    position_P: np.ndarray
    """Position of the first row in its sequence."""
    weight_P: np.ndarray
    """How often each token counts, at least once."""
    stratum_P: np.ndarray
    cluster_P: np.ndarray
    joins_P: np.ndarray
    """Whether the piece goes on where the one before ended, in the same sequence and cluster."""

    def __len__(self) -> int:
        return len(self.start_P)

    def rows(self, chosen_P: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows of some pieces, all if None, and the piece of each: two int64 [T]."""
        piece_P = np.arange(len(self)) if chosen_P is None else chosen_P
        length_P = self.length_P[piece_P]
        shift_P = self.start_P[piece_P] - (np.cumsum(length_P) - length_P)
        piece_T = np.repeat(piece_P, length_P)
        return np.arange(len(piece_T)) + np.repeat(shift_P, length_P), piece_T

    def same_rows(self, other: Pieces) -> bool:
        """Whether both count the same rows equally often."""
        mine, theirs = ((p.start_P, p.stop_P, p.weight_P) for p in (self, other))
        return all(np.array_equal(a, b) for a, b in zip(mine, theirs, strict=True))

    def same(self, other: Pieces) -> bool:
        """Whether both are the same in all."""
        names = [field.name for field in fields(self)]
        return all(np.array_equal(getattr(self, name), getattr(other, name)) for name in names)

    def without(self, dropped_T: np.ndarray) -> Pieces:
        """Cut rows out: bool [T] says which."""
        if not len(self):
            return self
        is_bound_T, is_start_T = np.zeros((2, len(dropped_T) + 1), bool)
        is_start_T[self.start_P] = True
        is_bound_T[1:-1] = dropped_T[1:] != dropped_T[:-1]
        is_bound_T[self.start_P] = is_bound_T[self.stop_P] = True
        bound_Q = np.flatnonzero(is_bound_T)
        start_Q, stop_Q = bound_Q[:-1], bound_Q[1:]
        piece_Q = np.cumsum(is_start_T[start_Q]) - 1
        is_kept_Q = (piece_Q >= 0) & (start_Q < self.stop_P[piece_Q]) & ~dropped_T[start_Q]
        start_Q, stop_Q, piece_Q = start_Q[is_kept_Q], stop_Q[is_kept_Q], piece_Q[is_kept_Q]
        joins_Q = self.joins_P[piece_Q] & (start_Q == self.start_P[piece_Q])
        joins_Q[:1] = False
        joins_Q[1:] &= start_Q[1:] == stop_Q[:-1]
        return Pieces(
            start_P=start_Q.astype(np.int32),
            stop_P=stop_Q.astype(np.int32),
            position_P=(self.position_P[piece_Q] + start_Q - self.start_P[piece_Q]).astype(
                np.int32
            ),
            weight_P=self.weight_P[piece_Q],
            stratum_P=self.stratum_P[piece_Q],
            cluster_P=self.cluster_P[piece_Q],
            joins_P=joins_Q,
        )

    @property
    def length_P(self) -> np.ndarray:
        return np.asarray(self.stop_P - self.start_P, np.int64)

    @cached_property
    def group_P(self) -> np.ndarray:
        """(task, subject, area) of each."""
        return self.stratum_P // len(SEGMENTS)

    @property
    def tokens_P(self) -> np.ndarray:
        """Tokens that each piece counts for: its rows times its weight."""
        return np.asarray(self.length_P * self.weight_P)


def cut(index: TraceIndex, stretches: Stretches, rule: Rule) -> Pieces:
    """Cut a part into the pieces that a rule counts.

    Args:
        index: Of the trace.
        stretches: Of the part.
        rule: The counting rule; see `rules.weigh`.
    """
    rows = _located(index, stretches)
    weight_T = weigh(rule, rows)
    weight_T[np.repeat(stretches.sequence_R < 0, stretches.length_R)] = 0
    is_new_T = np.zeros(stretches.rows + 1, bool)
    is_new_T[stretches.start_R] = True
    is_new_T[-1] = True
    is_new_T[1:-1] |= np.diff(rows.segment_T) != 0
    is_new_T[1:-1] |= np.diff(weight_T) != 0
    bounds = np.flatnonzero(is_new_T)
    start_P, stop_P = bounds[:-1], bounds[1:]
    counts_P = weight_T[start_P] > 0
    start_P, stop_P = start_P[counts_P], stop_P[counts_P]
    sequence_P, position_P = rows.sequence_T[start_P], rows.position_T[start_P]
    segment_P = rows.segment_T[start_P]
    prefix_P = index.prefix_cluster_S[sequence_P]
    cluster_P = np.where((segment_P == 0) & (prefix_P >= 0), prefix_P, index.cluster_S[sequence_P])
    joins_P = np.zeros(len(start_P), bool)
    joins_P[1:] = (
        (start_P[1:] == stop_P[:-1])
        & (sequence_P[1:] == sequence_P[:-1])
        & (position_P[1:] == position_P[:-1] + stop_P[:-1] - start_P[:-1])
        & (cluster_P[1:] == cluster_P[:-1])
    )
    return Pieces(
        start_P=start_P.astype(np.int32),
        stop_P=stop_P.astype(np.int32),
        position_P=position_P.astype(np.int32),
        weight_P=weight_T[start_P].astype(np.int32),
        stratum_P=(index.group_S[sequence_P] * len(SEGMENTS) + segment_P).astype(np.int32),
        cluster_P=cluster_P.astype(np.int32),
        joins_P=joins_P,
    )


def by_octave(pieces: Pieces) -> tuple[Pieces, np.ndarray]:
    """Cut pieces where their position passes a power of two; also the bin of each."""
    end_P = pieces.position_P + pieces.length_P
    parts: list[tuple[np.ndarray, np.ndarray, int]] = []
    most = int(end_P.max(initial=0))
    for number in range(most.bit_length() + 1):
        low, high = (1 << number) >> 1, 1 << number
        begin_P, stop_P = np.maximum(pieces.position_P, low), np.minimum(end_P, high)
        if number == 0:
            begin_P, stop_P = pieces.position_P, np.minimum(end_P, 1)
        chosen_P = np.flatnonzero(stop_P > begin_P)
        if len(chosen_P):
            parts.append((chosen_P, np.stack([begin_P, stop_P])[:, chosen_P], number))
    if not parts:
        return pieces, np.zeros(0, np.int64)
    source = np.concatenate([chosen for chosen, _, _ in parts])
    bounds = np.concatenate([bounds for _, bounds, _ in parts], axis=1)
    offset = pieces.start_P[source] - pieces.position_P[source]
    cut = replace(
        pieces,
        start_P=(bounds[0] + offset).astype(np.int32),
        stop_P=(bounds[1] + offset).astype(np.int32),
        position_P=bounds[0].astype(np.int32),
        weight_P=pieces.weight_P[source],
        stratum_P=pieces.stratum_P[source],
        cluster_P=pieces.cluster_P[source],
        joins_P=np.zeros(len(source), bool),
    )
    return cut, np.concatenate([np.full(len(chosen), number) for chosen, _, number in parts])


def _located(index: TraceIndex, stretches: Stretches) -> Located:
    sequence_T, position_T = stretches.tokens()
    # Rows of unknown sequences weigh nothing; any position that exists will do for them.
    position_T = np.where(sequence_T < 0, 0, position_T)
    return locate(index, np.maximum(sequence_T, 0), position_T)
