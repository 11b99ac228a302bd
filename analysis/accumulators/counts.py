"""S1: selections by layer and expert, for every subject and segment. Additive.

Shape suffixes: T tokens of a block, K slots, N experts of a layer, G strata, R rows of a table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
import pyarrow as pa

from moe_probe.analysis.rules import Rule, table_segments
from moe_probe.errors import TraceError
from moe_probe.trace import LayerSpec, Trace
from moe_probe.trace.counting import Stratum
from moe_probe.trace.schema import COUNTS_SCHEMA
from moe_probe.trace.tables import read_part

if TYPE_CHECKING:
    from moe_probe.analysis.scan import Rows


@dataclass(frozen=True)
class LayerCounts:
    """Selections in one layer."""

    spec: LayerSpec
    counts_N: np.ndarray
    """Selections of each expert: int64."""
    tokens: int
    """T: tokens counted."""

    @property
    def assignments(self) -> int:
        """A: selections over all experts, which is T times k where every slot is filled."""
        return int(self.counts_N.sum())


class Counts:
    """Selections and tokens by stratum; strata appear as they are seen.

    Args:
        layers: The layers to count, by the model's own index.
        rule: How often each token counts.
    """

    def __init__(self, layers: Mapping[int, LayerSpec], rule: Rule) -> None:
        self.layers = dict(layers)
        self.rule = rule
        self.strata: dict[Stratum, int] = {}
        """Number of each stratum."""
        self.tokens_G = np.zeros(0, np.int64)
        self.counts_GN = {
            layer: np.zeros((0, spec.num_experts), np.int64) for layer, spec in layers.items()
        }

    def update(self, rows: Rows) -> None:
        """Add a block, each token as often as the rule says; empty slots are not counted."""
        number_G = self._numbers(rows.strata)
        weight_T = rows.weight_T(self.rule)
        chosen_T = np.flatnonzero(weight_T)
        weight_T = weight_T[chosen_T]
        stratum_T = number_G[rows.stratum_T[chosen_T]]
        self.tokens_G += _bincount(stratum_T, weight_T, len(self.strata))
        for layer, counts_GN in self.counts_GN.items():
            num_experts = counts_GN.shape[1]
            ids_TK = rows.topk_ids(layer)[chosen_T].astype(np.int64)
            # "None" and ids the layer lacks fall into one column more, which is cut off.
            key_TK = np.minimum(ids_TK, num_experts) + stratum_T[:, None] * (num_experts + 1)
            weight_TK = np.broadcast_to(weight_T[:, None], key_TK.shape)
            tally = _bincount(key_TK.ravel(), weight_TK, len(counts_GN) * (num_experts + 1))
            counts_GN += tally.reshape(len(counts_GN), num_experts + 1)[:, :num_experts]

    def merge(self, other: Self) -> None:
        """Add the counts of another shard; raises ValueError if its layers or rule differ."""
        if (other.layers, other.rule) != (self.layers, self.rule):
            raise ValueError("counts of different layers or rules cannot be merged")
        number_G = self._numbers(other.strata)
        self.tokens_G[number_G] += other.tokens_G
        for layer, counts_GN in self.counts_GN.items():
            counts_GN[number_G] += other.counts_GN[layer]

    def layer(self, layer: int, where: Callable[[Stratum], bool] = lambda _: True) -> LayerCounts:
        """Sum one layer over the strata that `where` accepts."""
        chosen = [number for stratum, number in self.strata.items() if where(stratum)]
        return LayerCounts(
            self.layers[layer],
            self.counts_GN[layer][chosen].sum(axis=0),
            int(self.tokens_G[chosen].sum()),
        )

    def by_layer(self) -> Iterator[LayerCounts]:
        """Yield every layer, summed over all strata."""
        return map(self.layer, self.layers)

    @classmethod
    def from_tables(cls, trace: Trace, rule: Rule) -> Self:
        """Take the counts from a trace's counts tables instead of its rows, part by part.

        `raw` is their column `count`, `unique` is `unique_count`, `question` is `unique_count` of
        the segments that `rules.table_segments` names. The tables do not have the number of
        tokens: it comes from the first layer that fills every slot.

        Raises:
            TraceError: every layer can have empty slots, the tables do not fit the layers, or
                they do not tell what the rule counts.
        """
        filled = next((s for s in trace.layers.values() if not s.empty_slots), None)
        if filled is None:
            raise TraceError(
                "Every layer of this trace can leave slots empty, so its counts do not tell the "
                "number of tokens. Record with --capture ids."
            )
        counts = cls(trace.layers, rule)
        segments = table_segments(trace) if rule is Rule.QUESTION else ()
        for path in trace.counts_parts:
            counts._add_table(read_part(path, COUNTS_SCHEMA), segments)
        assignments_G = counts.counts_GN[filled.layer].sum(axis=1)
        counts.tokens_G = -(-assignments_G // filled.top_k)
        return counts

    def _add_table(self, table: pa.Table, segments: Sequence[str]) -> None:
        if self.rule is Rule.QUESTION:
            is_question_R = np.isin(table["segment"].to_numpy(), segments)
            table = table.filter(pa.array(is_question_R))
        name = "count" if self.rule is Rule.RAW else "unique_count"
        stratum_R = self._table_strata(table)
        column_R = _columns(table, self.layers)
        count_R = table[name].to_numpy()
        if (column_R < 0).any() or count_R.min(initial=0) < 0:
            raise TraceError(
                "The counts tables have layers or experts that run.json lacks, or negative "
                "counts: they are damaged. Record again."
            )
        shape = len(self.strata), sum(spec.num_experts for spec in self.layers.values())
        tally_G = _bincount(stratum_R * shape[1] + column_R, count_R, shape[0] * shape[1])
        for counts_GN, tally_GN in zip(
            self.counts_GN.values(), _split(tally_G.reshape(shape), self.layers), strict=True
        ):
            counts_GN += tally_GN

    def _table_strata(self, table: pa.Table) -> np.ndarray:
        key_R = np.zeros(len(table), np.int64)
        names: list[list[str]] = []
        for field in Stratum._fields:
            column = table[field].combine_chunks().dictionary_encode()
            if isinstance(column, pa.ChunkedArray):
                column = column.combine_chunks()
            names.append(column.dictionary.to_pylist())
            key_R = key_R * len(names[-1]) + column.indices.to_numpy()
        keys = pa.array(key_R).dictionary_encode()
        fields = np.unravel_index(
            keys.dictionary.to_numpy(), [max(len(values), 1) for values in names]
        )
        strata = [
            Stratum(*(values[i] for values, i in zip(names, index, strict=True)))
            for index in zip(*fields, strict=True)
        ]
        return np.asarray(self._numbers(strata)[keys.indices.to_numpy()])

    def _numbers(self, strata: Iterable[Stratum]) -> np.ndarray:
        """Return the number of each stratum, giving new ones a number and zero counts."""
        numbers = [self.strata.setdefault(stratum, len(self.strata)) for stratum in strata]
        added = len(self.strata) - len(self.tokens_G)
        if added:
            self.tokens_G = np.pad(self.tokens_G, (0, added))
            for layer, counts_GN in self.counts_GN.items():
                self.counts_GN[layer] = np.pad(counts_GN, ((0, added), (0, 0)))
        return np.array(numbers, np.int64)


def table_totals(trace: Trace) -> dict[int, np.ndarray]:
    """Sum column `count` of the counts tables by layer and expert: per layer int64 [N].

    Rows of layers or experts that run.json lacks are left out.
    """
    schema = pa.schema([COUNTS_SCHEMA.field(name) for name in ("layer", "expert", "count")])
    total = np.zeros(sum(spec.num_experts for spec in trace.layers.values()), np.int64)
    for path in trace.counts_parts:
        # Without the strings a part is read ten times faster.
        table = read_part(path, schema)
        column_R = _columns(table, trace.layers)
        known_R = column_R >= 0
        total += _bincount(column_R[known_R], table["count"].to_numpy()[known_R], len(total))
    return dict(zip(trace.layers, _split(total, trace.layers), strict=True))


def _columns(table: pa.Table, layers: Mapping[int, LayerSpec]) -> np.ndarray:
    """Number each row's expert, all layers joined; -1 for one that the layers lack."""
    layer_R, expert_R = table["layer"].to_numpy(), table["expert"].to_numpy()
    unknown = max(layers) + 1
    start = np.zeros(unknown + 1, np.int64)
    num_experts = np.zeros(unknown + 1, np.int64)
    next_start = 0
    for layer, spec in layers.items():
        start[layer], num_experts[layer] = next_start, spec.num_experts
        next_start += spec.num_experts
    layer_R = np.where((layer_R < 0) | (layer_R > unknown), unknown, layer_R)
    is_known_R = (expert_R >= 0) & (expert_R < num_experts[layer_R])
    return np.where(is_known_R, start[layer_R] + expert_R, -1)


def _split(joined: np.ndarray, layers: Mapping[int, LayerSpec]) -> list[np.ndarray]:
    """Cut the last axis, where all layers are joined, into one array per layer."""
    stops = np.cumsum([spec.num_experts for spec in layers.values()])
    return np.split(joined, stops[:-1], axis=-1)


def _bincount(key: np.ndarray, weight: np.ndarray, length: int) -> np.ndarray:
    if (weight == 1).all():
        return np.bincount(key, minlength=length)
    # Sums of integers below 2**53 are exact in the float64 that bincount adds in.
    return np.bincount(key, weight.ravel(), length).astype(np.int64)
