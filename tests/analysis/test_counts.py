"""Counts against a naive loop, by every rule, from rows and from the counts tables."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_probe.analysis.accumulators.counts import Counts, table_totals
from moe_probe.analysis.accumulators.rows import RowFaults
from moe_probe.analysis.rules import Located, Rule, SequenceFacts
from moe_probe.analysis.scan import Rows, count, read_rows, scan
from moe_probe.errors import TraceError
from moe_probe.trace import Block, LayerSpec
from moe_probe.trace.counting import Stratum

RULES = list(Rule)


def by_key(counts: Counts) -> tuple[dict[int, dict[Any, int]], dict[Any, int]]:
    """Return what was counted, in the form of the naive loop, without zeros."""
    selections: dict[int, dict[Any, int]] = {}
    tokens: dict[Any, int] = {}
    for stratum, number in counts.strata.items():
        for layer, counts_GN in counts.counts_GN.items():
            mine = selections.setdefault(layer, {})
            for expert in np.flatnonzero(counts_GN[number]).tolist():
                mine[stratum.subject, stratum.segment, expert] = int(counts_GN[number, expert])
        if counts.tokens_G[number]:
            tokens[stratum.subject, stratum.segment] = int(counts.tokens_G[number])
    return selections, tokens


def without_zeros(naive: Any) -> Any:
    selections, tokens = naive
    return {layer: +found for layer, found in selections.items()}, +tokens


@pytest.mark.parametrize("rule", RULES)
def test_scan_equals_naive_loop(run: Any, rule: Rule) -> None:
    assert by_key(count(run.trace, rule)) == without_zeros(run.naive(rule))


@pytest.mark.parametrize("rule", RULES)
def test_tables_equal_naive_loop(run: Any, rule: Rule) -> None:
    assert by_key(Counts.from_tables(run.trace, rule)) == without_zeros(run.naive(rule))


def test_tables_without_strings_have_the_same_sums(run: Any) -> None:
    totals = table_totals(run.trace)
    for layer in count(run.trace, Rule.RAW).by_layer():
        assert (totals[layer.spec.layer] == layer.counts_N).all()


@pytest.mark.parametrize("rule", RULES)
def test_counts_level_trace_equals_naive_loop(counts_run: Any, rule: Rule) -> None:
    assert by_key(count(counts_run.trace, rule)) == without_zeros(counts_run.naive(rule))


def test_order_of_the_sequences_table_does_not_matter(run: Any) -> None:
    order = np.random.default_rng(3).permutation(len(run.trace.sequences))
    run.trace.sequences = run.trace.sequences.take(pa.array(order))
    assert by_key(count(run.trace, Rule.RAW)) == without_zeros(run.naive("raw"))


def test_scan_of_some_layers_leaves_others_alone(run: Any) -> None:
    part = Counts({5: run.trace.layers[5]}, Rule.RAW)
    scan(run.trace, [part], layers=[5])
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


@pytest.mark.parametrize("rule", RULES)
def test_shards_merge_to_the_whole(run: Any, rule: Rule) -> None:
    layers = run.trace.layers
    whole, faults = Counts(layers, rule), RowFaults(layers)
    shards = [(Counts(layers, rule), RowFaults(layers)) for _ in range(3)]
    for number, rows in enumerate(read_rows(run.trace)):
        for accumulator in (whole, faults, *shards[number % 3]):
            accumulator.update(rows)
    for counts, found in shards[1:]:
        shards[0][0].merge(counts)
        shards[0][1].merge(found)
    assert by_key(shards[0][0]) == by_key(whole)
    assert shards[0][1].by_layer() == faults.by_layer()
    assert shards[0][1].rows_by_sequence == faults.rows_by_sequence


SPEC = LayerSpec(layer=0, num_experts=4, top_k=2, empty_slots=True)


def block_of(ids: list[list[int]], subjects: list[int], runs: list[int]) -> Rows:
    """Make a block in memory, one sequence per token; its strata are numbered in its own way."""
    ids_TK = np.array(ids, np.uint8).reshape(-1, 2)
    buffer = pa.py_buffer(ids_TK.tobytes())
    column = pa.FixedSizeBinaryArray.from_buffers(pa.binary(2), len(ids_TK), [None, buffer])
    names, stratum_S = np.unique(subjects, return_inverse=True)
    zeros_T = np.zeros(len(ids), np.int64)
    facts = SequenceFacts(
        sequence_id_S=np.arange(len(ids)),
        ends_S4=np.zeros((len(ids), 4), np.int64),
        asked_end_S=zeros_T,
        num_tokens_S=zeros_T + 1,
        multiplicity_S=np.array(runs),
        new_from_S=zeros_T,
        stratum_S=stratum_S,
        strata=[Stratum("", f"s{name}", "", "question") for name in names],
        extra_E=np.zeros(0, np.int64),
        extra_offset_S=zeros_T - 1,
    )
    block = Block(pa.table({"L00": column}), {0: SPEC})
    return Rows(block, Located(facts, np.arange(len(ids)), zeros_T, zeros_T))


TOKEN = st.tuples(
    st.lists(st.sampled_from([0, 1, 2, 3, 255]), min_size=2, max_size=2),
    st.integers(0, 3),
    st.integers(0, 5),
    st.integers(0, 2),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(TOKEN, max_size=30))
def test_any_split_merges_to_the_whole(tokens: list[tuple[list[int], int, int, int]]) -> None:
    def filled(chosen: list[Any]) -> Counts:
        counts = Counts({0: SPEC}, Rule.RAW)
        if chosen:
            ids, strata, weights, _ = zip(*chosen, strict=True)
            counts.update(block_of(list(ids), list(strata), list(weights)))
        return counts

    merged = Counts({0: SPEC}, Rule.RAW)
    for shard in range(3):
        merged.merge(filled([token for token in tokens if token[3] == shard]))
    assert by_key(merged) == by_key(filled(tokens))
    assert merged.layer(0).tokens == sum(token[2] for token in tokens)
    expected = sum(sum(e != 255 for e in ids) * weight for ids, _, weight, _ in tokens)
    assert merged.layer(0).assignments == expected


def test_counts_of_other_layers_do_not_merge() -> None:
    with pytest.raises(ValueError, match="different layers"):
        Counts({0: SPEC}, Rule.RAW).merge(Counts({}, Rule.RAW))
    with pytest.raises(ValueError, match="rules"):
        Counts({0: SPEC}, Rule.RAW).merge(Counts({0: SPEC}, Rule.UNIQUE))
    with pytest.raises(ValueError, match="different layers"):
        RowFaults({0: SPEC}).merge(RowFaults({}))


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
            Counts.from_tables(run.trace, Rule.RAW)


def test_row_beyond_its_sequence_is_refused(new_trace: Any) -> None:
    trace = new_trace([SPEC], [np.zeros((3, 2), np.uint8)])
    short = trace.sequences.set_column(1, "num_tokens", pa.array([2], pa.int64()))
    trace.sequences = short  # the property is cached
    with pytest.raises(TraceError, match="beyond the end"):
        count(trace, Rule.RAW)


def test_unknown_history_counts_nowhere_but_raw(new_trace: Any) -> None:
    spec = LayerSpec(layer=0, num_experts=4, top_k=2)
    trace = new_trace([spec], [np.array([[0, 1], [2, 3]], np.uint8)], new_from=-1)
    assert [count(trace, rule).layer(0).tokens for rule in RULES] == [2, 0, 0]
    assert [Counts.from_tables(trace, rule).layer(0).tokens for rule in RULES] == [2, 0, 0]
