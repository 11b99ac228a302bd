"""Counts against a naive loop, by every rule, from rows and from the counts tables."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moe_probe.analysis.accumulators.counts import Counts
from moe_probe.analysis.accumulators.tables import counts_from_tables, table_totals
from moe_probe.analysis.quality import check_trace
from moe_probe.analysis.reading.rules import Rule
from moe_probe.analysis.reading.source import Source
from moe_probe.analysis.scan import count, scan
from moe_probe.errors import TraceError
from moe_probe.trace import LayerSpec

RULES = [Rule.RAW, Rule.UNIQUE, Rule.QUESTION, Rule.DECISION]
TABLE_RULES = RULES[:3]


def by_key(counts: Counts) -> tuple[dict[int, dict[Any, int]], dict[Any, int]]:
    """Return what was counted, in the form of the naive loop, without zeros."""
    selections: dict[int, dict[Any, int]] = {}
    tokens: dict[Any, int] = {}
    for number, stratum in enumerate(counts.axes.strata):
        for layer, arrays in counts.arrays.items():
            counts_N, tokens_G = arrays["counts_GN"][number], arrays["tokens_G"]
            mine = selections.setdefault(layer, {})
            for expert in np.flatnonzero(counts_N).tolist():
                mine[stratum.subject, stratum.segment, expert] = int(counts_N[expert])
            if tokens_G[number]:
                tokens[stratum.subject, stratum.segment] = int(tokens_G[number])
    return selections, tokens


def without_zeros(naive: Any) -> Any:
    selections, tokens = naive
    return {layer: +found for layer, found in selections.items()}, +tokens


@pytest.mark.parametrize("rule", RULES)
def test_scan_equals_naive_loop(run: Any, rule: Rule) -> None:
    assert by_key(count(run.trace, rule)) == without_zeros(run.naive(rule))


@pytest.mark.parametrize("rule", TABLE_RULES)
def test_tables_equal_naive_loop(run: Any, rule: Rule) -> None:
    assert by_key(counts_from_tables(run.trace, rule)) == without_zeros(run.naive(rule))


def test_tables_without_strings_have_the_same_sums(run: Any) -> None:
    totals = table_totals(run.trace)
    for layer in count(run.trace, Rule.RAW).by_layer():
        assert (totals[layer.spec.layer] == layer.counts_N).all()


@pytest.mark.parametrize("rule", TABLE_RULES)
def test_counts_level_trace_equals_naive_loop(counts_run: Any, rule: Rule) -> None:
    assert by_key(count(counts_run.trace, rule)) == without_zeros(counts_run.naive(rule))


def test_order_of_the_sequences_table_does_not_matter(run: Any) -> None:
    order = np.random.default_rng(3).permutation(len(run.trace.sequences))
    run.trace.sequences = run.trace.sequences.take(pa.array(order))
    assert by_key(count(run.trace, Rule.RAW)) == without_zeros(run.naive("raw"))


def test_traces_and_rules_may_be_named(run: Any) -> None:
    opened, path = count(run.trace, Rule.RAW), str(run.trace.path)
    assert by_key(count(path, "raw")) == by_key(opened)
    part = Counts(run.trace.layers, Rule.RAW, Source(run.trace).index)
    scan(path, [part])
    assert by_key(part) == by_key(opened)
    assert check_trace(path) == check_trace(run.trace)


def test_scan_of_some_layers_leaves_others_alone(run: Any) -> None:
    source = Source(run.trace)
    part = Counts({5: run.trace.layers[5]}, Rule.RAW, source.index)
    scan(source, [part], layers=[5])
    assert (part.layer(5).counts_N == count(run.trace, Rule.RAW).layer(5).counts_N).all()


def test_layer_sums_chosen_strata(run: Any) -> None:
    counts = count(run.trace, Rule.RAW)
    law = counts.layer(1, lambda stratum: stratum.subject == "law")
    found, tokens = run.naive("raw")
    expected = np.zeros(8, np.int64)
    for (subject, _, expert), number in found[1].items():
        expected[expert] += number if subject == "law" else 0
    assert law.counts_N.tolist() == expected.tolist()
    assert law.tokens == sum(n for (subject, _), n in tokens.items() if subject == "law")
    assert law.assignments == 2 * law.tokens


SPEC = LayerSpec(layer=0, num_experts=4, top_k=2, empty_slots=True)


def test_layers_with_empty_slots_need_rows(new_trace: Any) -> None:
    rows_TB = np.array([[0, 1], [2, 255], [255, 255]], np.uint8)
    trace = new_trace([SPEC], [rows_TB])
    layer = count(trace, Rule.RAW).layer(0)
    assert (layer.counts_N.tolist(), layer.tokens, layer.assignments) == ([1, 1, 1, 0], 3, 3)
    with pytest.raises(TraceError, match="leave slots empty"):
        count(new_trace([SPEC], [rows_TB], capture="counts"), Rule.RAW)


def test_foreign_counts_tables_are_refused(run: Any) -> None:
    path = run.trace.files.parts("counts")[0]
    table = pq.read_table(path)
    for column, value in (("expert", 5), ("expert", -1), ("layer", 9), ("layer", -1)):
        index = table.schema.get_field_index(column)
        wrong = pa.array([value] * len(table), pa.int32())
        pq.write_table(table.set_column(index, column, wrong), path)
        with pytest.raises(TraceError, match=r"run\.json lacks"):
            counts_from_tables(run.trace, Rule.RAW)


def test_row_beyond_its_sequence_is_refused(new_trace: Any) -> None:
    trace = new_trace([SPEC], [np.zeros((3, 2), np.uint8)])
    short = trace.sequences.set_column(1, "num_tokens", pa.array([2], pa.int64()))
    trace.sequences = short  # the property is cached
    with pytest.raises(TraceError, match="beyond the end"):
        count(trace, Rule.RAW)


def test_unknown_history_counts_nowhere_but_raw(new_trace: Any) -> None:
    spec = LayerSpec(layer=0, num_experts=4, top_k=2)
    trace = new_trace([spec], [np.array([[0, 1], [2, 3]], np.uint8)], new_from=-1)
    assert [count(trace, rule).layer(0).tokens for rule in TABLE_RULES] == [2, 0, 0]
    tables = [counts_from_tables(trace, rule) for rule in TABLE_RULES]
    assert [table.layer(0).tokens for table in tables] == [2, 0, 0]


@pytest.mark.parametrize("rule", RULES)
def test_weights_of_rows_count_the_same(run: Any, rule: Rule) -> None:
    source = Source(run.trace)
    counts = {layer.spec.layer: layer.counts_N for layer in count(run.trace, rule).by_layer()}
    for layer, spec in source.layers.items():
        total_N = np.zeros(spec.num_experts, np.int64)
        for rows in source.read([layer]):
            ids_TK = rows.topk_ids(layer).astype(np.int64)
            np.add.at(total_N, ids_TK, rows.weight_T(rule)[:, None])
        assert total_N.tolist() == counts[layer].tolist()
