"""Counts of expert selections by task, subject and stretch: the small table every trace has.

Shape suffixes: T tokens, K slots, N experts, G strata (task, subject, area, segment).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa

from moe_probe.trace.schema import COUNTS_SCHEMA, SEGMENTS, LayerSpec, Sequence


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


class CountsBuilder:
    """Adds layers one by one and makes the tidy table; rows with a zero count are left out."""

    def __init__(self, strata: Strata) -> None:
        self._strata = list(strata.numbers)
        self._tables: list[pa.Table] = []

    def add_layer(
        self,
        spec: LayerSpec,
        ids_TK: np.ndarray,
        *,
        stratum_T: np.ndarray,
        runs_T: np.ndarray,
        is_new_T: np.ndarray,
        weights_TK: np.ndarray | None = None,
    ) -> None:
        """Count one layer.

        Args:
            spec: The layer; an id that it lacks is "none" and not counted.
            ids_TK: Expert ids.
            stratum_T: Stratum number of each token.
            runs_T: How often the model ran each token: `count` and `weight_sum` are times this.
            is_new_T: Whether the token's context is seen for the first time: `unique_count`.
            weights_TK: Gate weights, where they are captured.
        """
        shape = (len(self._strata), spec.num_experts + 1)
        key_TK = np.minimum(ids_TK, spec.num_experts) + stratum_T[:, None] * shape[1]
        slots = ids_TK.shape[1]

        def tally(weights_TK: np.ndarray | None = None) -> np.ndarray:
            flat = None if weights_TK is None else weights_TK.ravel()
            size = shape[0] * shape[1]
            return np.bincount(key_TK.ravel(), flat, size).reshape(shape)[:, : spec.num_experts]

        runs_TK = np.repeat(runs_T[:, None], slots, axis=1)
        counts_GN = tally() if (runs_T == 1).all() else np.rint(tally(runs_TK)).astype(np.int64)
        if is_new_T.all():
            unique_GN = tally()
        else:
            new_TK = np.repeat(is_new_T[:, None], slots, axis=1).astype(np.float64)
            unique_GN = np.rint(tally(new_TK)).astype(np.int64)
        sums_GN = None if weights_TK is None else tally(weights_TK.astype(np.float64) * runs_TK)
        self._tables.append(self._table(spec.layer, counts_GN, unique_GN, sums_GN))

    def _table(
        self,
        layer: int,
        counts_GN: np.ndarray,
        unique_GN: np.ndarray,
        sums_GN: np.ndarray | None,
    ) -> pa.Table:
        stratum, expert = np.nonzero((counts_GN > 0) | (unique_GN > 0))
        columns = [
            np.full(len(expert), layer, np.int32),
            expert.astype(np.int32),
            *(
                pa.DictionaryArray.from_arrays(stratum, pa.array(values)).cast(pa.string())
                for values in (list(zip(*self._strata, strict=True)) or [[""]] * 4)
            ),
            counts_GN[stratum, expert],
            unique_GN[stratum, expert],
            pa.nulls(len(expert), pa.float64()) if sums_GN is None else sums_GN[stratum, expert],
        ]
        return pa.table(columns, schema=COUNTS_SCHEMA)

    def table(self) -> pa.Table:
        return pa.concat_tables(self._tables) if self._tables else COUNTS_SCHEMA.empty_table()
