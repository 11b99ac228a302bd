"""Selections by layer, expert and stratum, and gate weights beside them.

Shape suffixes: T tokens of a part, K slots, G strata, N experts of a layer, R rows of a table.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import numpy as np
import pyarrow as pa

from moe_probe.analysis.accumulators.base import Arrays, LayerAccumulator
from moe_probe.analysis.accumulators.counts import Counts
from moe_probe.analysis.accumulators.tables import counts_from_tables
from moe_probe.analysis.exports.choice import Choice
from moe_probe.analysis.exports.files import Rows
from moe_probe.analysis.kernels.plain.rows import by_weight
from moe_probe.analysis.reading.source import Rows as PartRows
from moe_probe.analysis.scan import Accumulator, scan
from moe_probe.trace import SEGMENTS, LayerSpec
from moe_probe.trace.counting import Stratum

_SCHEMA = pa.schema(
    [
        *((name, pa.int32()) for name in ("layer", "expert")),
        *((name, pa.string()) for name in Stratum._fields),
        ("count", pa.int64()),
        ("weight_sum", pa.float64()),
    ]
)


def count_table(choice: Choice) -> Rows:
    """One row per layer, expert, task, subject, area and segment with selections.

    `count` is by the choice's rule, and `weight_sum` the gate weights behind it: null where they
    were not captured.

    Raises:
        UsageError: the trace has no such subject.
        TraceError: it is damaged, or does not have what the rule needs.
    """
    weights = StratumWeights(choice) if choice.has_weights else None
    counts = count(choice, weights)
    wants_G = np.repeat(choice.wants_S(counts.axes.groups), len(SEGMENTS))
    names = list(zip(*counts.axes.strata, strict=True)) or [()] * len(Stratum._fields)

    def tables() -> Iterator[pa.Table]:
        for layer in choice.layers:
            counts_GN = counts.arrays[layer]["counts_GN"] * wants_G[:, None]
            stratum_R, expert_R = chosen = np.nonzero(counts_GN)
            texts = [np.array(values, object)[stratum_R] for values in names]
            sums = pa.nulls(len(expert_R))
            if weights is not None:
                sums = weights.arrays[layer]["weight_sum_GN"][chosen]
            columns = [np.full(len(expert_R), layer), expert_R, *texts, counts_GN[chosen], sums]
            typed = [pa.array(c).cast(f.type) for c, f in zip(columns, _SCHEMA, strict=True)]
            yield pa.table(typed, _SCHEMA)

    return Rows(_SCHEMA.with_metadata(choice.metadata), tables())


def count(choice: Choice, *more: Accumulator | None) -> Counts:
    """Count the chosen layers, from rows where there are any and else from the counts tables.

    `more` is filled by the same scan.
    """
    if not choice.has_rows:
        return counts_from_tables(choice.trace, choice.rule)
    counts = Counts(choice.layers, choice.rule, choice.source.index)
    scan(choice.source, [counts, *filter(None, more)], layers=list(choice.layers))
    return counts


class StratumWeights(LayerAccumulator):
    """Gate weights `weight_sum_GN` float64, by stratum; ids that no expert has add to none."""

    kind = "stratum weights"
    weights = True

    def __init__(self, choice: Choice) -> None:
        super().__init__(choice.layers, choice.rule, choice.source.index)

    def empty(self, spec: LayerSpec) -> Arrays:
        return {"weight_sum_GN": np.zeros((self.axes.length("G"), spec.num_experts))}

    def add(self, rows: PartRows, layer: int, kernels: ModuleType) -> None:
        sums_GN, pieces = self.arrays[layer]["weight_sum_GN"], rows.pieces(self.rule)
        strata, experts = sums_GN.shape
        ids_TK, weights_TK = rows.topk_ids(layer), rows.topk_weights(layer)
        for weight, row_T, piece_T in by_weight(pieces):
            key_TK = np.minimum(ids_TK[row_T].astype(np.int64), experts)
            key_TK += (pieces.stratum_P[piece_T] * (experts + 1))[:, None]
            gates = weights_TK[row_T].astype(np.float64).ravel()
            sums = np.bincount(key_TK.ravel(), gates, strata * (experts + 1))
            sums_GN += sums.reshape(strata, experts + 1)[:, :experts] * weight
