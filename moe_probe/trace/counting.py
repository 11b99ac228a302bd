"""Counts of expert selections by task, subject and stretch: the small table every trace has.

Shape suffixes: T tokens, K slots, N experts, G strata (task, subject, area, segment),
R rows of the counts table.
"""

from __future__ import annotations

from collections.abc import Iterator
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
        self.numbers: dict[Stratum, int] = {}

    def assign(self, sequence: Sequence, positions_T: np.ndarray) -> np.ndarray:
        """Return the stratum number of each position: int64 [T]."""
        number_by_segment = [
            self.numbers.setdefault(
                Stratum(sequence.task, sequence.subject, sequence.area, segment), len(self.numbers)
            )
            for segment in SEGMENTS
        ]
        # side="right": a position equal to a stretch's end belongs to the next stretch.
        segment_T = np.searchsorted(sequence.bounds[:-1], positions_T, side="right")
        return np.asarray(number_by_segment)[segment_T]


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
        order_T = np.lexsort((is_new_T, runs_T, stratum_T))
        keys = [values_T[order_T] for values_T in (stratum_T, runs_T, is_new_T)]
        is_first_T = np.ones(len(order_T), bool)
        is_first_T[1:] = np.any([key_T[1:] != key_T[:-1] for key_T in keys], axis=0)
        starts = np.flatnonzero(is_first_T).tolist()
        groups = [
            (slice(start, stop), int(keys[0][start]), int(keys[1][start]), bool(keys[2][start]))
            for start, stop in zip(starts, [*starts[1:], len(order_T)], strict=True)
        ]
        return cls(order_T, groups)


class CountsBuilder:
    """Adds layers one by one and makes the tidy table; rows with a zero count are left out."""

    def __init__(self, strata: Strata, groups: Groups) -> None:
        self._strata = list(strata.numbers)
        self._groups = groups
        self._columns: list[tuple[np.ndarray, ...]] = []
        self._has_weights = False

    def add_layer(
        self, spec: LayerSpec, ids_TK: np.ndarray, weights_TK: np.ndarray | None = None
    ) -> None:
        """Count one layer; an id that it lacks is "none" and not counted."""
        shape = (len(self._strata), spec.num_experts)
        counts_GN, unique_GN = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        sums_GN = np.zeros(shape)
        self._has_weights = weights_TK is not None
        ids_TK = np.take(ids_TK, self._groups.order_T, axis=0)
        if weights_TK is not None:
            weights_TK = np.take(weights_TK, self._groups.order_T, axis=0)
        for rows, stratum, runs, is_new in self._groups.groups:
            weights = None if weights_TK is None else weights_TK[rows].ravel()
            tally_N, sum_N = _histogram(ids_TK[rows].ravel(), weights, spec.num_experts)
            counts_GN[stratum] += runs * tally_N
            unique_GN[stratum] += tally_N if is_new else 0
            sums_GN[stratum] += runs * sum_N
        stratum_R, expert_R = np.nonzero(counts_GN | unique_GN)
        chosen = (stratum_R, expert_R)
        layer_R = np.full(len(expert_R), spec.layer)
        values = (counts_GN[chosen], unique_GN[chosen], sums_GN[chosen])
        self._columns.append((layer_R, expert_R, stratum_R, *values))

    def table(self) -> pa.Table:
        """Everything counted, as COUNTS_SCHEMA says."""
        if not self._columns or not self._strata:
            return COUNTS_SCHEMA.empty_table()
        joined = [np.concatenate(column) for column in zip(*self._columns, strict=True)]
        layer_R, expert_R, stratum_R, count_R, unique_R, sum_R = joined
        columns = [
            layer_R.astype(np.int32),
            expert_R.astype(np.int32),
            *(
                pa.DictionaryArray.from_arrays(stratum_R, pa.array(list(names))).cast(pa.string())
                for names in zip(*self._strata, strict=True)
            ),
            count_R,
            unique_R,
            sum_R if self._has_weights else pa.nulls(len(sum_R), pa.float64()),
        ]
        return pa.table(columns, schema=COUNTS_SCHEMA)


def _histogram(
    ids: np.ndarray, weights: np.ndarray | None, num_experts: int
) -> tuple[np.ndarray, np.ndarray]:
    tally_N, sum_N = np.zeros(num_experts, np.int64), np.zeros(num_experts)
    for chunk in _chunks(len(ids)):
        chunk_ids = ids[chunk]
        if ids.itemsize > 1:
            chunk_ids = np.minimum(chunk_ids, num_experts)  # "none" is 65,535: a long histogram
        tally_N += np.bincount(chunk_ids, minlength=num_experts)[:num_experts]
        if weights is not None:
            sum_N += np.bincount(chunk_ids, weights[chunk], num_experts)[:num_experts]
    return tally_N, sum_N


def _chunks(length: int) -> Iterator[slice]:
    for start in range(0, length, _CHUNK_IDS):
        yield slice(start, start + _CHUNK_IDS)
