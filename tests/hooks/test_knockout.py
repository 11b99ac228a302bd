"""The captured experts are those that the model ran, by an oracle that never sees a router."""

from __future__ import annotations

import pytest

from tests.hooks.oracle import as_sets, executed_experts
from tests.hooks.recorded import record
from tests.hooks.zoo import ZOO, build, padded_batch

# The zero experts of LongCat return their input: they have no down-projection to knock out.
NAMES = [name for name in ZOO if name != "longcat_flash"]


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", NAMES)
def test_captured_experts_are_those_that_ran(name: str, side: str) -> None:
    model, inputs, entry = build(name), padded_batch(side), ZOO[name]
    (step,) = record(model, inputs)
    executed = executed_experts(model, inputs, entry.layers, entry.num_experts)
    valid_T = inputs["attention_mask"].reshape(-1).bool()
    for layer in entry.layers:
        captured = as_sets(step.ids[layer], entry.num_experts)
        assert (captured.sum(dim=1) == entry.top_k).all()
        mismatches = (captured != executed[layer])[valid_T].any(dim=1).sum()
        assert mismatches == 0, f"layer {layer}: {mismatches} of {valid_T.sum()} tokens"
