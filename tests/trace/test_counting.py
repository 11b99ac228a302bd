"""Counts tables against counting one by one, with prefixes stored once and stored again."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_probe.errors import TraceError
from moe_probe.trace import open_trace
from moe_probe.trace.sharing import SharingIndex
from tests.trace.recordings import record, stored_rows, table_counts


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("capture", ["ids", "weights"])
def test_counts_equal_counting_one_by_one(tmp_path: Path, seed: int, capture: str) -> None:
    recording = record(tmp_path / "t", seed, capture=capture)
    found, expected = table_counts(open_trace(tmp_path / "t")), recording.naive_counts()
    assert {key: value[:2] for key, value in found.items()} == {
        key: value[:2] for key, value in expected.items()
    }
    if capture == "weights":
        sums = {key: value[2] for key, value in found.items()}
        assert sums == pytest.approx({key: value[2] for key, value in expected.items()}, rel=1e-12)
    else:
        assert open_trace(tmp_path / "t").counts["weight_sum"].null_count == len(
            open_trace(tmp_path / "t").counts
        )


@pytest.mark.parametrize("seed", range(3))
def test_storing_everything_and_counting_only_give_the_same(tmp_path: Path, seed: int) -> None:
    shared = record(tmp_path / "shared", seed)
    record(tmp_path / "whole", seed, share=False)
    record(tmp_path / "counts", seed, share=False, capture="counts")
    tables = [table_counts(open_trace(tmp_path / name)) for name in ("shared", "whole", "counts")]
    assert tables[0] == tables[1] == tables[2]
    assert any(prompt.sequence.prefix_tokens for prompt in shared.prompts)
    assert not list((tmp_path / "counts" / "routing").iterdir())


@pytest.mark.parametrize("seed", range(3))
def test_shared_rows_are_stored_once_and_found_through_the_chain(tmp_path: Path, seed: int) -> None:
    recording = record(tmp_path / "t", seed)
    trace = open_trace(tmp_path / "t")
    rows = stored_rows(trace)
    own = [p.sequence.num_tokens - p.sequence.prefix_tokens for p in recording.prompts]
    assert len(rows) == sum(own)
    for prompt in recording.prompts:
        number = prompt.sequence.sequence_id
        owner_of = dict.fromkeys(range(prompt.sequence.num_tokens), number)
        for share in trace.sharing.chain(number):
            owner_of.update(dict.fromkeys(range(share.start, share.stop), share.owner))
        for position, owner in owner_of.items():
            _, *ids = rows[owner, position]
            expected = [
                np.where(ids_TK[position] < 0, 255, ids_TK[position]).tolist()
                for ids_TK in prompt.ids
            ]
            assert ids == expected


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1 << 32), capture=st.sampled_from(["counts", "ids"]))
def test_what_a_cache_gave_counts_nowhere(seed: int, capture: str) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "t"
        share = capture == "ids"
        recording = record(path, seed, capture=capture, cache=True, share=share)
        trace = open_trace(path)
        found, expected = table_counts(trace), recording.naive_counts()
        assert {k: v[:2] for k, v in found.items()} == {k: v[:2] for k, v in expected.items()}
        cached = [prompt.sequence.cached_tokens for prompt in recording.prompts]
        assert trace.sequences["cached_tokens"].to_pylist() == cached
        own = [p.sequence.num_tokens - p.sequence.prefix_tokens for p in recording.prompts]
        assert capture == "counts" or len(stored_rows(trace)) == sum(own)


@st.composite
def sharing_tables(draw: st.DrawFn) -> pa.Table:
    rows: list[dict[str, int]] = []
    for number in range(draw(st.integers(1, 12))):
        owner = draw(st.integers(-1, number - 1))
        limit = rows[owner]["num_tokens"] if owner >= 0 else 0
        prefix_tokens = draw(st.integers(0, limit))
        rows.append(
            {
                "sequence_id": number,
                "prefix_id": owner,
                "prefix_tokens": prefix_tokens,
                "multiplicity": draw(st.integers(0, 2)),
                "num_tokens": prefix_tokens + draw(st.integers(0, 5)),
            }
        )
    return pa.Table.from_pylist(rows)


@settings(max_examples=200, deadline=None)
@given(sequences=sharing_tables())
def test_extra_runs_equal_following_every_token(sequences: pa.Table) -> None:
    rows = sequences.to_pylist()
    expected = {row["sequence_id"]: [0] * row["num_tokens"] for row in rows}
    for row in rows:
        for position in range(row["prefix_tokens"]):
            owner = row
            while position < owner["prefix_tokens"]:
                owner = rows[owner["prefix_id"]]
            expected[owner["sequence_id"]][position] += row["multiplicity"]
    found = {owner: runs.tolist() for owner, runs in SharingIndex(sequences).extra_runs().items()}
    assert {owner: runs for owner, runs in expected.items() if any(runs)} == {
        owner: runs for owner, runs in found.items() if any(runs)
    }


@pytest.mark.parametrize("owner", [1, 7])
def test_owner_that_is_later_or_absent_is_refused(owner: int) -> None:
    row = {"sequence_id": 1, "prefix_tokens": 2, "multiplicity": 1, "num_tokens": 3}
    index = SharingIndex(pa.Table.from_pylist([{**row, "prefix_id": owner}]))
    with pytest.raises(TraceError, match=f"Sequence 1 refers to {owner} for its first 2 tokens"):
        index.extra_runs()
