"""What is no number of anything is refused in a sentence, by every function that takes one."""

from __future__ import annotations

import math
from typing import Any

import pytest

from moe_probe import analysis
from moe_probe.bundled import SAMPLE_TRACE
from tests.analysis.studies.test_docs import FUNCTIONS, OF_PASSES

NUMBERS = [
    ("batch_balance", "sizes"),
    ("device_fanout", "devices"),
    ("expert_flows", "most"),
    ("expert_selectivity", "permutations"),
    ("load_changes", "window"),
    ("load_drift", "window"),
    ("pass_balance", "devices"),
    ("ranking_stability", "splits"),
    ("subject_clades", "replicates"),
    ("subject_selectivity", "permutations"),
    ("token_contexts", "around"),
    ("token_contexts", "contexts"),
    ("token_contexts", "least"),
    ("token_contexts", "most"),
    ("token_lists", "least"),
    ("token_lists", "most"),
    ("token_predictability", "least"),
    ("vocabulary_specialization", "least"),
    ("working_sets", "windows"),
]
LISTS = ("devices", "sizes", "windows")
NONE: list[Any] = [0, -1, 2.5, math.nan, math.inf, 10**30, "many"]


@pytest.mark.parametrize("value", NONE)
@pytest.mark.parametrize(("name", "argument"), NUMBERS)
def test_numbers_of_things(name: str, argument: str, value: Any) -> None:
    given = [value] if argument in LISTS else value
    with pytest.raises(ValueError, match=r"at least one|multiple of the first, above 0"):
        getattr(analysis, name)(SAMPLE_TRACE, **{argument: given})


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name not in OF_PASSES])
def test_threads(name: str) -> None:
    """None at all would be a table without rows."""
    for threads in (0, -1, 1.5):
        with pytest.raises(ValueError, match="threads: a whole number, at least one"):
            getattr(analysis, name)(SAMPLE_TRACE, threads=threads)


def test_parts_of_the_documents() -> None:
    for parts in ([], [0], [-0.5], [0.6], [math.nan], [10**30]):
        with pytest.raises(ValueError, match="splits into parts"):
            analysis.ranking_stability(SAMPLE_TRACE, parts=parts)
