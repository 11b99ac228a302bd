"""Shared leading tokens: stored once, counted as often as the model ran them.

A sequence may leave its first `prefix_tokens` tokens to another one, which may do the same, so
sharing forms chains that always point to earlier sequences.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from moe_probe.errors import TraceError


class Share(NamedTuple):
    """Rows [start, stop) that one sequence stores and another one ran too."""

    owner: int
    start: int
    stop: int
    multiplicity: int


class SharingIndex:
    """Who stores which leading tokens, from the sequences table of a trace."""

    def __init__(self, sequences: pa.Table) -> None:
        names = ("sequence_id", "prefix_id", "prefix_tokens", "multiplicity", "num_tokens")
        columns = [sequences[name].to_numpy() for name in names]
        self._facts: dict[int, tuple[int, int, int, int]] = {
            row[0]: (row[1], row[2], row[3], row[4])
            for row in zip(*(column.tolist() for column in columns), strict=True)
        }

    def chain(self, sequence_id: int) -> Iterator[Share]:
        """Stretches that others store for one sequence, nearest owner first.

        Raises TraceError for an owner that is missing, or does not come earlier, or has fewer
        tokens, or took tokens that this one ran from a cache.
        """
        owner, stop, multiplicity, _ = self._facts[sequence_id]
        if owner < 0:
            return  # What an engine's cache gave, no sequence stores.
        child = sequence_id
        while stop > 0:
            if owner not in self._facts or owner >= child:
                raise TraceError(f"Sequence {child} refers to {owner} for its first {stop} tokens.")
            next_owner, start, _, length = self._facts[owner]
            if stop > length:
                raise TraceError(
                    f"Sequence {child} refers to {owner} for its first {stop} tokens, which has "
                    f"{length}."
                )
            if start < stop:
                yield Share(owner, start, stop, multiplicity)
            child, owner, stop = owner, next_owner, min(stop, start)

    def shares(self) -> Iterator[Share]:
        """Every stretch that some sequence ran and another one stores."""
        for sequence_id, (_, prefix_tokens, multiplicity, _) in self._facts.items():
            if prefix_tokens and multiplicity:
                yield from self.chain(sequence_id)

    def extra_runs(self) -> dict[int, np.ndarray]:
        """How often each stored row was run for sequences other than its owner.

        Returns:
            For every owner, int64 [num_tokens of the owner], indexed by position.
        """
        steps: dict[int, np.ndarray] = {}
        for share in self.shares():
            if share.owner not in steps:
                steps[share.owner] = np.zeros(self._facts[share.owner][3] + 1, np.int64)
            steps[share.owner][share.start] += share.multiplicity
            steps[share.owner][share.stop] -= share.multiplicity
        return {owner: np.cumsum(step)[:-1] for owner, step in steps.items()}
