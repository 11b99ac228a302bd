"""Exported rows against the prompts that were written, one selection at a time."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from moe_probe.analysis import Rule, analyse
from moe_probe.analysis.exports import rows
from moe_probe.analysis.exports.choice import Choice
from moe_probe.analysis.exports.files import write_rows
from moe_probe.errors import UsageError
from moe_probe.trace import SEGMENTS, LayerSpec, Sequence, open_trace
from tests.trace.recordings import LAYERS, Recording, record

KEY = ["sequence_id", "position", "layer", "slot"]


@pytest.fixture(params=[0, 1])
def recording(tmp_path: Path, request: pytest.FixtureRequest) -> Recording:
    return record(tmp_path / "trace", request.param, capture="weights", cache=True)


def choose(recording: Recording, rule: Rule = Rule.RAW, **what: Any) -> Choice:
    return Choice.of(open_trace(recording.path), rule, **what)


def exported(choice: Choice, kind: str = "selections") -> pd.DataFrame:
    made = getattr(rows, kind)(choice)
    records = [row for table in made.tables for row in table.to_pylist()]
    return pd.DataFrame(records, columns=made.schema.names)


def owner(recording: Recording, sequence: Sequence, position: int) -> Sequence:
    """The sequence that stores a token, by following who shares with whom."""
    while position < sequence.prefix_tokens:
        sequence = recording.prompts[sequence.prefix_id].sequence
    return sequence


def naive(recording: Recording, rule: Rule) -> dict[Any, tuple[Any, ...]]:
    """By sequence_id, position, layer and slot: the rest of the row."""
    counts: Counter[Any] = Counter()
    facts: dict[Any, tuple[Any, ...]] = {}
    for sequence, layer, position, slot, expert, weight in recording.selections():
        stored = owner(recording, sequence, position)
        key = (stored.sequence_id, position, layer, slot + 1)
        if rule is Rule.RAW:
            counts[key] += sequence.multiplicity
        elif stored is sequence and 0 <= sequence.new_from <= position:
            counts[key] = 1
        segment = SEGMENTS[sum(position >= end for end in stored.bounds[:-1])]
        texts = (stored.task, stored.subject, stored.area, segment)
        facts[key] = (*texts, stored.doc_id, position + 1000, expert, weight)
    return {key: (*facts[key], count) for key, count in counts.items() if count}


@pytest.mark.parametrize("rule", [Rule.RAW, Rule.UNIQUE])
def test_every_selection_is_a_row(recording: Recording, rule: Rule) -> None:
    frame = exported(choose(recording, rule))
    names = ["task", "subject", "area", "segment", "doc_id", "token_id", "expert", "weight"]
    found = frame.set_index(KEY)[[*names, "count"]]
    assert found.index.is_unique
    assert dict(zip(found.index, found.itertuples(index=False, name=None), strict=True)) == naive(
        recording, rule
    )


def test_rows_come_by_token_and_layer_and_slot(recording: Recording) -> None:
    frame = exported(choose(recording))
    stored = [
        (int(sequence_id), int(position))
        for block in open_trace(recording.path).scan()
        for sequence_id, position in zip(block.sequence_id_T, block.position_T, strict=True)
    ]
    rank = {token: number for number, token in enumerate(stored)}
    keys = [(rank[a, b], c, d) for a, b, c, d in frame[KEY].itertuples(index=False, name=None)]
    assert keys == sorted(keys)


def test_sums_of_rows_are_the_counts_of_everything_else(recording: Recording) -> None:
    frame = exported(choose(recording))
    sums = frame.groupby(["layer", "expert"])["count"].sum()
    table = open_trace(recording.path).counts.to_pandas().groupby(["layer", "expert"])
    in_table = table["count"].sum()
    pd.testing.assert_series_equal(sums, in_table[in_table > 0], check_index_type=False)
    experts = analyse(recording.path, rule="raw", shuffles=1, replicates=2, permutations=2).experts
    analysed = experts.set_index(["layer", "expert"])["count"]
    assert sums.to_dict() == analysed[analysed > 0].to_dict()


def test_lists_are_the_same_selections(recording: Recording) -> None:
    frame, by_token = exported(choose(recording)), exported(choose(recording), "lists")
    joined = defaultdict(list)
    for *token, expert, weight in frame[[*KEY[:3], "expert", "weight"]].itertuples(index=False):
        joined[tuple(token)].append((expert, weight))
    found = {
        (row["sequence_id"], row["position"], row["layer"]): list(
            zip(row["experts"], row["weights"], strict=True)
        )
        for row in by_token.to_dict("records")
    }
    assert {key: pairs for key, pairs in found.items() if pairs} == joined
    tokens = frame.drop_duplicates(KEY[:2])
    assert len(by_token) == len(by_token.drop_duplicates(KEY[:2])) * len(LAYERS)
    assert len(by_token) >= len(tokens) * len(LAYERS)


def test_ids_of_lists_are_as_small_as_they_can_be(recording: Recording) -> None:
    kinds = [
        rows.lists(choose(recording, layers=layers)).schema.field("experts").type.value_type
        for layers in ("1-2,7", "5", "")
    ]
    assert kinds == [pa.uint8(), pa.uint16(), pa.uint16()]


def test_some_layers_and_subjects(recording: Recording) -> None:
    whole = exported(choose(recording))
    some = exported(choose(recording, layers="2,5-6", subjects=["subject 1", "subject 2"]))
    wanted = whole["layer"].isin([2, 5]) & whole["subject"].isin(["subject 1", "subject 2"])
    assert 0 < len(some) < len(whole)
    columns = [name for name in whole if name not in ("task", "subject", "area")]
    pd.testing.assert_frame_equal(some[columns], whole.loc[wanted, columns].reset_index(drop=True))


@pytest.mark.parametrize("layers", ["3", "x", "1,,2", "9-12", "1-2-3", "-1"])
def test_layers_that_there_are_not_are_refused(recording: Recording, layers: str) -> None:
    with pytest.raises(UsageError, match=r"Write 3 or 5-7|it has 1-2,5,7"):
        choose(recording, layers=layers)


def test_many_small_batches_are_one_table(
    recording: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once = exported(choose(recording))
    monkeypatch.setattr(rows, "_BATCH_SLOTS", 30)
    made = rows.selections(choose(recording))
    slots = sum(spec.top_k for spec in LAYERS)
    tables = list(made.tables)
    assert max(map(len, tables)) <= 30 // slots * slots
    assert len(tables) > 20
    pd.testing.assert_frame_equal(
        pd.DataFrame([row for table in tables for row in table.to_pylist()]), at_once
    )


@pytest.mark.parametrize(
    ("kind", "suffix"), [("selections", ".parquet"), ("selections", ".csv"), ("lists", ".parquet")]
)
def test_files_are_read_by_other_tools(
    recording: Recording, tmp_path: Path, kind: str, suffix: str
) -> None:
    path, choice = tmp_path / f"file{suffix}", choose(recording)
    written = write_rows(getattr(rows, kind)(choice), path, suffix)
    ours = [table.to_pylist() for table in getattr(rows, kind)(choice).tables]
    expected = [tuple(row.values()) for table in ours for row in table]
    assert written == len(expected)
    reader = "parquet" if suffix == ".parquet" else "csv"
    frame = getattr(pd, f"read_{reader}")(path).astype(object)
    lists = [name for name in ("experts", "weights") if name in frame]
    for name in lists:
        frame[name] = frame[name].map(np.ndarray.tolist)
    tables = [
        list(frame.itertuples(index=False, name=None)),
        getattr(pl, f"read_{reader}")(path).rows(),
        duckdb.sql(f"FROM '{path}'").fetchall(),
    ]
    for table in tables:
        if suffix == ".csv":  # read as float64: the digits are those of float32
            assert [row[:-1] for row in table] == [row[:-1] for row in expected]
            weights = [np.float32(row[-1]) for row in table]
            assert weights == [np.float32(row[-1]) for row in expected]
        else:
            assert table == expected


def test_weights_that_were_not_captured_are_null(tmp_path: Path) -> None:
    recording = record(tmp_path / "trace", 3, num_prompts=5)
    assert exported(choose(recording))["weight"].isna().all()
    lists = exported(choose(recording), "lists")
    assert lists["weights"].isna().all()
    assert lists["experts"].map(len).sum() == len(exported(choose(recording)))


def test_ids_that_no_expert_has_are_left_out(tmp_path: Path, new_trace: Any) -> None:
    layers = [LayerSpec(layer=0, num_experts=4, top_k=2)]
    trace = new_trace(layers, [np.array([[0, 9], [3, 1], [7, 200]], np.uint8)])
    choice = Choice.of(trace, Rule.RAW)
    assert exported(choice)["expert"].tolist() == [0, 3, 1]
    assert exported(choice, "lists")["experts"].tolist() == [[0], [3, 1], []]


def test_a_trace_of_counts_has_no_rows(tmp_path: Path) -> None:
    recording = record(tmp_path / "trace", 0, num_prompts=3, capture="counts", share=False)
    with pytest.raises(UsageError, match="no per-token rows"):
        exported(choose(recording))


def test_a_trace_without_sequences_gives_empty_files(tmp_path: Path) -> None:
    recording = record(tmp_path / "trace", 0, num_prompts=0)
    readers: list[tuple[str, Any]] = [(".csv", pd.read_csv), (".parquet", pd.read_parquet)]
    for suffix, reader in readers:
        path = tmp_path / f"empty{suffix}"
        made = rows.selections(choose(recording))
        assert write_rows(made, path, suffix) == 0
        frame = reader(path)
        assert (len(frame), list(frame)) == (0, made.schema.names)
