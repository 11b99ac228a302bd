"""What a capture recorded, unpacked for comparison."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from moe_probe.hooks.step_buffer import StepRows
from moe_probe.hooks.transformers import TransformersCapture
from moe_probe.trace import LayerSpec, RowLayout


@dataclass
class Step:
    """One forward pass, by layer index."""

    ids: dict[int, np.ndarray]
    weights: dict[int, np.ndarray]
    token_ids: np.ndarray | None
    num_tokens: int


def record(model: Any, *batches: dict[str, Any], keep_weights: bool = False) -> list[Step]:
    """Run a model on batches under capture."""
    steps: list[StepRows] = []
    with TransformersCapture(model, keep_weights=keep_weights) as capture, torch.no_grad():
        capture.on_step = steps.append
        for batch in batches:
            model(**batch)
    return [unpack(step, capture.layers) for step in steps]


def unpack(rows: StepRows, layers: list[LayerSpec]) -> Step:
    """Read one step's rows through their layout, as a consumer does."""
    layout = RowLayout(tuple(layers))
    ids_TB, weights_TS, _, token_ids, *_ = rows.wait()
    ids = {spec.layer: layout.layer_ids(ids_TB, index) for index, spec in enumerate(layers)}
    weights = {}
    if weights_TS is not None:
        for index, spec in enumerate(layers):
            start, stop = layout.slot_offsets[index : index + 2]
            weights[spec.layer] = weights_TS[:, start:stop]
    return Step(ids, weights, token_ids, rows.num_tokens)


def assert_same_ids(ours: Step, theirs: Step) -> None:
    """Assert that two steps chose the same experts in the same slots, in every layer."""
    assert ours.ids.keys() == theirs.ids.keys()
    for layer, ids in ours.ids.items():
        np.testing.assert_array_equal(ids, theirs.ids[layer])
