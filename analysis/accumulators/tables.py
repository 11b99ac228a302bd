"""Counts from a trace's counts tables, where there are no rows or too many.

Shape suffixes: N experts of a layer, G strata, R rows of a table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from moe_probe.analysis.accumulators.counts import Counts
from moe_probe.analysis.reading.index import TraceIndex
from moe_probe.analysis.reading.rules import Rule, table_segments
from moe_probe.errors import TraceError
from moe_probe.trace import LayerSpec, Trace
from moe_probe.trace.counting import Stratum
from moe_probe.trace.schema import COUNTS_SCHEMA
from moe_probe.trace.tables import read_slices

# Rows of a counts table that are read at a time.
_ROWS = 1 << 18
_TABLE_RULES = (Rule.RAW, Rule.UNIQUE, Rule.QUESTION)


def counts_from_tables(trace: Trace, rule: Rule) -> Counts:
    """Take the counts from a trace's counts tables instead of its rows, part by part.

    `raw` is their column `count`, `unique` is `unique_count`, `question` is `unique_count` of the
    segments that `rules.table_segments` names. The tables do not have the number of tokens: it
    comes from the first layer that fills every slot.

    Raises:
        TraceError: every layer can have empty slots, the tables do not fit the layers or the
            sequences, or they do not tell what the rule counts.
    """
    if rule not in _TABLE_RULES:
        raise TraceError(
            f"The counts of this trace do not tell what the rule {rule} counts. Record with "
            "--capture ids, or use another --rule."
        )
    filled = next((s for s in trace.layers.values() if not s.empty_slots), None)
    if filled is None:
        raise TraceError(
            "Every layer of this trace can leave slots empty, so its counts do not tell the "
            "number of tokens. Record with --capture ids."
        )
    counts = Counts(trace.layers, rule, TraceIndex.of(trace))
    segments = table_segments(trace) if rule is Rule.QUESTION else ()
    for path in trace.counts_parts:
        for table in read_slices(path, COUNTS_SCHEMA, _ROWS):
            _add_table(counts, table, segments)
    tokens_G = -(-counts.arrays[filled.layer]["counts_GN"].sum(axis=1) // filled.top_k)
    for arrays in counts.arrays.values():
        arrays["tokens_G"] = tokens_G.copy()
    return counts


def table_totals(trace: Trace) -> dict[int, np.ndarray]:
    """Sum column `count` of the counts tables by layer and expert: per layer int64 [N].

    Rows of layers or experts that run.json lacks are left out.
    """
    schema = pa.schema([COUNTS_SCHEMA.field(name) for name in ("layer", "expert", "count")])
    total = np.zeros(sum(spec.num_experts for spec in trace.layers.values()), np.int64)
    for path in trace.counts_parts:
        # Without the strings a part is read ten times faster.
        for table in read_slices(path, schema, _ROWS):
            column_R = _columns(table, trace.layers)
            known_R = column_R >= 0
            total += _bincount(column_R[known_R], table["count"].to_numpy()[known_R], len(total))
    return dict(zip(trace.layers, _split(total, trace.layers), strict=True))


def _add_table(counts: Counts, table: pa.Table, segments: Sequence[str]) -> None:
    if counts.rule is Rule.QUESTION:
        is_question_R = np.isin(table["segment"].to_numpy(), segments)
        table = table.filter(pa.array(is_question_R))
    name = "count" if counts.rule is Rule.RAW else "unique_count"
    stratum_R = _strata(table, counts.axes.strata)
    column_R = _columns(table, counts.layers)
    count_R = table[name].to_numpy()
    if (column_R < 0).any() or (stratum_R < 0).any() or count_R.min(initial=0) < 0:
        raise TraceError(
            "The counts tables have layers or experts that run.json lacks, subjects that no "
            "sequence has, or negative counts: they are damaged. Record again."
        )
    shape = counts.axes.length("G"), sum(spec.num_experts for spec in counts.layers.values())
    tally_G = _bincount(stratum_R * shape[1] + column_R, count_R, shape[0] * shape[1])
    tally_by_layer = _split(tally_G.reshape(shape), counts.layers)
    for arrays, tally_GN in zip(counts.arrays.values(), tally_by_layer, strict=True):
        arrays["counts_GN"] += tally_GN


def _strata(table: pa.Table, strata: Sequence[Stratum]) -> np.ndarray:
    """Number each row's stratum; -1 for one that the sequences lack."""
    key_R = np.zeros(len(table), np.int64)
    names: list[list[str]] = []
    for field in Stratum._fields:
        column = table[field].combine_chunks().dictionary_encode()
        if isinstance(column, pa.ChunkedArray):
            column = column.combine_chunks()
        names.append(column.dictionary.to_pylist())
        key_R = key_R * len(names[-1]) + column.indices.to_numpy()
    keys = pa.array(key_R).dictionary_encode()
    fields = np.unravel_index(keys.dictionary.to_numpy(), [max(len(values), 1) for values in names])
    number_of = {stratum: number for number, stratum in enumerate(strata)}
    numbers = [
        number_of.get(Stratum(*(values[i] for values, i in zip(names, index, strict=True))), -1)
        for index in zip(*fields, strict=True)
    ]
    return np.asarray(np.array(numbers, np.int64)[keys.indices.to_numpy()])


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
