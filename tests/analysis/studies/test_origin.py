"""What functions return says by which rule, and where one matters in which order, it was made."""

from __future__ import annotations

import pytest

from moe_probe import analysis
from moe_probe.bundled import SAMPLE_TRACE
from moe_probe.trace import open_trace
from tests.analysis.studies.test_docs import FUNCTIONS, OF_PASSES

ORDERS = {
    "arrival_memory": "recording",
    "load_changes": "recording",
    "load_drift": "recording",
    "working_sets": "request-local",
}


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name not in OF_PASSES])
def test_attrs_tell_rule_and_order(name: str) -> None:
    counts = open_trace(SAMPLE_TRACE).counts.to_pandas().query("layer == 1")
    asked = counts[counts["segment"].isin(["question", "cue", "choice"])]["unique_count"].sum()
    said = getattr(analysis, name)(SAMPLE_TRACE, rule="question").attrs["moe_probe"]
    assert said["rule"] == "question"
    assert said["order"] == ORDERS.get(name)
    assert said["tokens"] == asked // open_trace(SAMPLE_TRACE).layers[1].top_k
    assert said["trace"] == "sample_trace"
    assert said["tokens_effective"] is None


def test_a_table_without_rows_tells_it_too() -> None:
    found = analysis.load_changes(SAMPLE_TRACE, window=1 << 20)
    assert found.empty
    assert found.attrs["moe_probe"]["rule"] == "unique"
