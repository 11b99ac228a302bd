"""What a request says about itself: read back as it was described, and nothing trusted."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_probe.recording.rows import Bounds, Request, Row
from moe_probe.recording.tags import TAG, describe, external_id, read_row, run_of

TEXT = st.text(max_size=30)
TOKENS = np.arange(12, dtype=np.int32)
ROWS = st.builds(
    lambda ends, truncated, request: Row(
        TOKENS, Bounds._make([*sorted(ends), 12]), truncated, [request]
    ),
    st.lists(st.integers(0, 12), min_size=3, max_size=3),
    st.integers(0, 10**6),
    st.builds(
        Request,
        task=TEXT.filter(bool),
        subject=TEXT.filter(bool),
        area=TEXT,
        doc_id=st.integers(-1, 2**40),
        kind=st.sampled_from(["loglikelihood", "loglikelihood_rolling", "generate_until"]),
        choice=st.integers(0, 1000),
    ),
)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(TEXT, inner, max_size=5),
)
FIELDS = ("task", "subject", "area", "doc", "kind", "choice", "bounds", "truncated", "run")
WHOLE = Bounds(0, 12, 12, 12)


def read(tags: dict[str, Any], **options: Any) -> Row:
    return read_row(tags, TOKENS, num_prompt_tokens=12, request_id="r-1-0123abcd", **options)


@given(ROWS, st.booleans())
def test_a_row_is_read_as_it_was_described(row: Row, is_text: bool) -> None:
    tag = describe(row, run="mine")
    found = read({TAG: json.dumps(tag) if is_text else tag})
    assert (found.bounds, found.truncated) == (row.bounds, row.truncated)
    (request,), (asked,) = found.requests, row.requests
    names = ("task", "subject", "area", "doc_id", "kind", "choice")
    assert [getattr(request, x) for x in names] == [getattr(asked, x) for x in names]
    assert request.answer_key == "r-1"
    assert not found.is_private
    assert run_of({TAG: tag}) == "mine"


def _check_sane(row: Row) -> None:
    (request,) = row.requests
    assert request.kind in ("served", "loglikelihood", "loglikelihood_rolling", "generate_until")
    for text in (request.task, request.subject, request.area):
        assert type(text) is str
        assert len(text) <= 1000
    # What the trace's columns can hold.
    assert type(request.choice) is int
    assert 0 <= request.choice < 2**31
    assert type(request.doc_id) is int
    assert -1 <= request.doc_id < 2**63
    assert 0 <= row.truncated < 2**63
    assert 0 <= row.bounds[0] <= row.bounds[1] <= row.bounds[2] <= row.bounds[3] <= 12


@given(st.dictionaries(st.sampled_from(FIELDS), ANYTHING), ANYTHING)
def test_no_tag_of_any_type_raises(fields: dict[str, Any], other: Any) -> None:
    for tags in (fields, {TAG: fields}, {TAG: json.dumps(fields)}, {TAG: other}):
        _check_sane(read(tags))
        run_of(tags)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[1", "[" * 100_000, '{"a":' * 100_000, "1" * 100_000, '"text"', "null", "NaN", "\0"],
    ids=lambda text: repr(text)[:8],
)
def test_text_that_is_no_object_is_a_request_without_tags(text: str) -> None:
    row = read({TAG: text})
    (request,) = row.requests
    assert (request.kind, request.task, request.doc_id, request.choice) == ("served", "", -1, 0)
    assert (row.bounds, row.truncated, row.is_private) == (WHOLE, 0, True)


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("doc", 2**62, -1),
        ("doc", -7, -1),
        ("doc", True, -1),
        ("doc", 3.0, -1),
        ("doc", "17", 17),
        ("doc", "٣", -1),
        ("doc", "9" * 5000, -1),
        ("choice", 2**31 - 1, 2**31 - 1),
        ("choice", 2**31, 0),
        ("choice", "4000000000", 0),
        ("choice", -1, 0),
        ("choice", True, 0),
        ("truncated", 10**400, 0),
    ],
)
def test_a_number_out_of_bounds_is_no_number(field: str, value: Any, expected: int) -> None:
    row = read({TAG: {field: value}})
    (request,) = row.requests
    found = {"doc": request.doc_id, "choice": request.choice, "truncated": row.truncated}
    assert found[field] == expected


@pytest.mark.parametrize(
    "bounds",
    [
        [0, 5, 4, 12],
        [0, 4, 5, 11],
        [0, 4, 5, 13],
        [-1, 4, 5, 12],
        [False, 4, 5, 12],
        [0, 4.0, 5, 12],
        [0, 4, 12],
        "0456",
        {"0": 1},
        [10**30] * 4,
    ],
)
def test_impossible_bounds_are_those_of_one_question(bounds: Any) -> None:
    assert read({TAG: {"bounds": bounds}}).bounds == WHOLE


def test_bounds_end_with_what_was_run_of_an_aborted_prompt() -> None:
    row = read_row({TAG: {"bounds": [2, 5, 9, 12]}}, TOKENS[:7], num_prompt_tokens=12)
    assert row.bounds == Bounds(2, 5, 7, 7)


def test_names_are_cut() -> None:
    (request,) = read({TAG: {"task": "t" * 10_000, "area": "a" * 10_000}}).requests
    assert (len(request.task), len(request.subject), len(request.area)) == (1000, 1000, 1000)


def test_text_is_private_unless_it_is_an_evaluation_or_asked_for() -> None:
    served, evaluation = {"task": "chat"}, {TAG: {"task": "mmlu", "kind": "loglikelihood"}}
    assert read(served).is_private
    assert read({TAG: {"task": "mmlu"}}).is_private
    # Nobody becomes an evaluation by a tag of another name.
    assert read({"kind": "loglikelihood"}).is_private
    assert not read(served, keeps_tokens=True).is_private
    assert not read(evaluation).is_private
    assert read(served).requests[0].task == "chat"
    assert read(served).requests[0].subject == "chat"


def test_nobody_waits_for_an_answer_to_live_traffic() -> None:
    assert read({"task": "chat"}, keeps_tokens=True).requests[0].answer_key is None


@pytest.mark.parametrize(
    ("engine_id", "client_id"),
    [
        ("0-1a2b3c4d", "0"),
        ("cmpl-my-id-0-1a2b3c4d", "cmpl-my-id-0"),
        ("plain", "plain"),
        ("short-1a2b", "short-1a2b"),
        ("", ""),
    ],
)
def test_external_id(engine_id: str, client_id: str) -> None:
    assert external_id(engine_id) == client_id
