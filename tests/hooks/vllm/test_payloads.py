"""Answers and evaluations that clients send: what is none is refused, and ends nothing."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_probe.errors import UsageError
from moe_probe.hooks.vllm.payloads import read_answers, read_evaluation

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=12,
)


def test_answers_pass_as_they_are() -> None:
    payload = [
        ["cmpl-a-0", {"loglik": -1.5, "is_greedy": False}],
        ["cmpl-b-0", {"loglik": -2, "is_greedy": True}],
        ["cmpl-c-0", {"response": "four"}],
    ]
    assert read_answers(payload) == [
        ("cmpl-a-0", {"loglik": -1.5, "is_greedy": False}),
        ("cmpl-b-0", {"loglik": -2.0, "is_greedy": True}),
        ("cmpl-c-0", {"response": "four"}),
    ]


@pytest.mark.parametrize(
    "answer",
    [
        ["name", {"loglik": True, "is_greedy": True, "other": 1}, 3],
        ["name", {"loglik": "-1", "is_greedy": True}],
        ["name", {"loglik": float("nan"), "is_greedy": True}],
        [7, {"response": "x"}],
        ["name", {"response": "x" * (2 << 20)}],
        ["name"],
        {},
        None,
    ],
)
def test_what_is_no_answer_is_refused(answer: Any) -> None:
    with pytest.raises(UsageError, match="is not an answer"):
        read_answers([answer])


def test_an_evaluation_gives_facts_and_outcomes() -> None:
    payload = {"run": "r", "results": {"acc": 0.5}, "correct": [["mmlu_law", 3, True]]}
    facts, correct = read_evaluation(payload)
    assert facts == {"run": "r", "results": {"acc": 0.5}}
    assert correct == {("mmlu_law", 3): True}
    with pytest.raises(UsageError, match="is not whether a document"):
        read_evaluation({"correct": [["mmlu_law", "3", True]]})


@given(JSON)
def test_nothing_a_client_sends_raises_anything_else(payload: Any) -> None:
    for read in (read_answers, read_evaluation):
        with suppress(UsageError):
            read(payload)
