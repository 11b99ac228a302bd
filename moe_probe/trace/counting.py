"""Counts of expert selections by task, subject and stretch: the small table every trace has.

Shape suffixes: T tokens, K slots, N experts, G strata (task, subject, area, segment),
R rows of the counts table.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
import pyarrow as pa

from moe_probe.trace.schema import COUNTS_SCHEMA, SEGMENTS, LayerSpec, Sequence

# Ids that np.bincount, which widens them to int64, takes at a time: more would leave the cache.
_CHUNK_IDS = 1 << 16


class Stratum(NamedTuple):
    """What a token belongs to in the counts table."""

    task: str
    subject: str
    area: str
    segment: str


class Strata:
    """Numbers the strata of a batch of tokens, sequence by sequence."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[str, str, str], int] = {}

    def assign(
        self, sequences: Items[Sequence], index_T: np.ndarray, position_T: np.ndarray
    ) -> np.ndarray:
        """Return the stratum number of each position of `sequences[index]`: int64 [T]."""
        numbers = [
            self._numbers.setdefault((s.task, s.subject, s.area), len(self._numbers))
            for s in sequences
        ]
        stratum_T: np.ndarray = np.array(numbers, np.int64)[index_T] * len(SEGMENTS)
        for ends in zip(*(sequence.bounds[:-1] for sequence in sequences), strict=True):
            # A position equal to a stretch's end belongs to the next stretch.
            stratum_T += position_T >= np.array(ends, np.int64)[index_T]
        return stratum_T

    def list(self) -> list[Stratum]:
        """The strata; their numbers are indices into this."""
        return [Stratum(*key, segment) for key in self._numbers for segment in SEGMENTS]


@dataclass(frozen=True)
class Groups:
    """Tokens sorted by how they count: one plain histogram per group gives every count."""

    order_T: np.ndarray
    """Token indices, group after group."""
    groups: list[tuple[slice, int, int, bool]]
    """Each group's stretch of `order_T`, its stratum, its runs, and whether its context is new."""

    @classmethod
    def of(cls, stratum_T: np.ndarray, runs_T: np.ndarray, is_new_T: np.ndarray) -> Self:
        """Group tokens.

        Args:
            stratum_T: Stratum number of each token.
            runs_T: How often the model ran each token: `count` and `weight_sum` are times this.
            is_new_T: Whether the token's context is seen for the first time: `unique_count`.
        """
        runs, runs_index_T = np.unique(runs_T, return_inverse=True)
        key_T = (stratum_T * len(runs) + runs_index_T) * 2 + is_new_T
        if key_T.max(initial=0) < 1 << 16:
            key_T = key_T.astype(np.uint16)  # radix sort: many times faster
        order_T = np.argsort(key_T, kind="stable")
        starts = np.flatnonzero(np.diff(key_T[order_T], prepend=-1)).tolist()
        groups = []
        for start, stop in itertools.pairwise([*starts, len(order_T)]):
            token = order_T[start]
            facts = int(stratum_T[token]), int(runs_T[token]), bool(is_new_T[token])
            groups.append((slice(start, stop), *facts))
        return cls(order_T, groups)


class CountsBuilder:
    """Adds layers one by one and makes the tidy table; rows with a zero count are left out."""

    def __init__(self, strata: Strata, groups: Groups) -> None:
        self._strata = strata.list()
        self._groups = groups
        self._columns: list[tuple[np.ndarray, ...]] = []
        self._has_weights = False

    def add_layer(
        self, spec: LayerSpec, ids_TK: np.ndarray, weights_TK: np.ndarray | None = None
    ) -> None:
        """Count one layer; an id that it lacks is "none" and not counted."""
        counts_GN = np.zeros((len(self._strata), spec.num_experts), np.int64)
        unique_GN, sums_GN = np.zeros_like(counts_GN), np.zeros(counts_GN.shape)
        self._has_weights = weights_TK is not None
        ids_TK = np.take(ids_TK, self._groups.order_T, axis=0)
        if weights_TK is not None:
            weights_TK = np.take(weights_TK, self._groups.order_T, axis=0)
        for rows, stratum, runs, is_new in self._groups.groups:
            for chunk in _chunks(rows, ids_TK.shape[1]):
                tally_N = _tally(ids_TK[chunk], None, spec.num_experts)
                counts_GN[stratum] += tally_N if runs == 1 else tally_N * runs
                if is_new:
                    unique_GN[stratum] += tally_N
                if weights_TK is not None:
                    sum_N = _tally(ids_TK[chunk], weights_TK[chunk], spec.num_experts)
                    sums_GN[stratum] += sum_N * runs
        stratum_R, expert_R = chosen = np.nonzero(counts_GN | unique_GN)
        layer_R = np.full(len(expert_R), spec.layer)
        values = (counts_GN[chosen], unique_GN[chosen], sums_GN[chosen])
        self._columns.append((layer_R, expert_R, stratum_R, *values))

    def table(self) -> pa.Table:
        """Everything counted: the columns of COUNTS_SCHEMA, text still as dictionaries."""
        if not self._columns or not self._strata:
            return COUNTS_SCHEMA.empty_table()
        joined = [np.concatenate(column) for column in zip(*self._columns, strict=True)]
        layer_R, expert_R, stratum_R, count_R, unique_R, sum_R = joined
        columns = [
            layer_R.astype(np.int32),
            expert_R.astype(np.int32),
            *(
                pa.DictionaryArray.from_arrays(stratum_R.astype(np.int32), pa.array(list(names)))
                for names in zip(*self._strata, strict=True)
            ),
            count_R,
            unique_R,
            sum_R if self._has_weights else pa.nulls(len(sum_R), pa.float64()),
        ]
        return pa.table(columns, names=COUNTS_SCHEMA.names)


def _tally(ids_TK: np.ndarray, weights_TK: np.ndarray | None, num_experts: int) -> np.ndarray:
    ids = ids_TK.ravel()
    if ids.itemsize > 1:
        ids = np.minimum(ids, num_experts)  # "none" is 65,535: a long histogram
    weights = None if weights_TK is None else weights_TK.ravel()
    return np.bincount(ids, weights, num_experts)[:num_experts]


def _chunks(rows: slice, slots: int) -> Iterator[slice]:
    step = max(_CHUNK_IDS // slots, 1)
    for start in range(rows.start, rows.stop, step):
        yield slice(start, min(start + step, rows.stop))
