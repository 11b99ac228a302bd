"""Forward passes of the engine: which of them ran each counted row, in streams of one rank each.

Ranks run at the same time and number their passes apart, so no order joins them. A pass of which
no row counts (it ran nothing new, or what was sampled out) is none of its stream.

Shape suffixes: T counted rows (in `key_T` all rows) of a part, X passes of a part, or of several
parts with repetitions, P passes of all streams, R ranks, S streams.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from moe_probe.errors import UsageError

if TYPE_CHECKING:
    from moe_probe.analysis.reading.pieces import Pieces
    from moe_probe.analysis.reading.rules import Rule
    from moe_probe.analysis.reading.source import Source
    from moe_probe.trace import Trace

_BITS = 32
"""Of a pass's number; rank or stream are above."""


@dataclass(frozen=True)
class PassRows:
    """Counted rows of one part, and their passes."""

    row_T: np.ndarray
    """Number of the row in its part."""
    place_T: np.ndarray
    """Place of its pass in `key_X`."""
    key_X: np.ndarray
    """The passes that occur, int64, ascending: rank and number; below 0 where not known."""
    tokens_X: np.ndarray
    """Rows of each."""

    @classmethod
    def of(cls, pieces: Pieces, key_T: np.ndarray) -> PassRows:
        row_T, _ = pieces.rows()
        found = np.unique(key_T[row_T], return_inverse=True, return_counts=True)
        key_X, place_T, tokens_X = found
        return cls(row_T, place_T, key_X, tokens_X)

    def keys(self, trace: Trace, streams: tuple[str, ...]) -> np.ndarray:
        """Return keys with the places of the streams instead of ranks: int64 [X]."""
        rank_R, which_X = np.unique(self.key_X >> _BITS, return_inverse=True)
        place_R = [streams.index(stream_name(trace, rank)) for rank in rank_R.tolist()]
        return pass_keys(np.array(place_R, np.int64)[which_X], self.key_X)


@dataclass(frozen=True)
class PassTable:
    """Every pass that ran a counted row, by stream and number."""

    streams: tuple[str, ...]
    """Their names, ascending."""
    key_P: np.ndarray
    """int64, ascending: place of the stream in `streams`, and number of the pass."""
    tokens_P: np.ndarray
    """Counted tokens, int64."""

    @classmethod
    def of(cls, source: Source, rule: Rule) -> PassTable:
        """Find the passes of a trace.

        Raises UsageError where counted rows do not say which pass ran them.
        """
        keys, tokens = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for part in source.parts:
            rows = PassRows.of(source.pieces(part, rule), source.pass_keys(part))
            keys.append(rows.key_X)
            tokens.append(rows.tokens_X)
        key_P, tokens_P = add_up(np.concatenate(keys), np.concatenate(tokens))
        unknown = int(tokens_P[key_P < 0].sum())
        if unknown:
            raise UsageError(
                f"This needs to know which forward pass ran each token, but of "
                f"{tokens_P.sum():,} tokens of {source.trace.path} that the rule {rule} counts "
                f"{unknown:,} do not say it. Record again with this moe-probe, or have idle "
                "runs in the order canonical, execution, shuffle-docs:SEED or request-local."
            )
        rank_R, which_P = np.unique(key_P >> _BITS, return_inverse=True)
        streams = tuple(stream_name(source.trace, rank) for rank in rank_R.tolist())
        return cls(streams, pass_keys(which_P, key_P), tokens_P)

    def by_stream(self) -> list[np.ndarray]:
        """Return the counted tokens of each stream's passes in turn, without empty streams."""
        return [self.tokens_P[some] for some in stream_slices(self.key_P)]


def stream_name(trace: Trace, rank: int) -> str:
    """Name the stream of a rank, differently in another recording."""
    return f"{trace.run.get('start')} {trace.path.resolve().name} {rank:010d}"


def pass_keys(above: np.ndarray, number: np.ndarray) -> np.ndarray:
    """Return rank or stream times 2^32 plus the number of the pass, the low 32 bits of `number`."""
    low = np.asarray(number, np.int64) & ((1 << _BITS) - 1)
    return np.asarray((np.asarray(above, np.int64) << _BITS) | low)


def replaced(key_P: np.ndarray, place_S: np.ndarray) -> np.ndarray:
    """Return keys with each stream's place replaced by `place_S` of it."""
    return pass_keys(place_S[key_P >> _BITS], key_P)


def add_up(key_X: np.ndarray, tokens_X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the different keys, ascending, and the sum of each one's tokens."""
    key_P, place_X = np.unique(key_X, return_inverse=True)
    tokens_P = np.zeros(len(key_P), np.int64)
    np.add.at(tokens_P, place_X, tokens_X)
    return key_P, tokens_P


def stream_slices(key_P: np.ndarray) -> list[slice]:
    """Return where the passes of each stream lie."""
    stream_P = key_P >> _BITS
    bounds = [0, *(np.flatnonzero(np.diff(stream_P)) + 1).tolist(), len(key_P)]
    return [slice(a, b) for a, b in itertools.pairwise(bounds) if b > a]
