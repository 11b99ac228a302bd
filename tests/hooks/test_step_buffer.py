"""Packing one forward pass: slot order, wide ids, layers of different shape, refusals.

Shape suffixes: T tokens, K slots.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from moe_probe.errors import CaptureError
from moe_probe.hooks.step_buffer import StepBuffer, StepRows
from moe_probe.hooks.transformers import TransformersCapture
from moe_probe.trace import Capture, LayerSpec, Sequence, TraceWriter, open_trace
from tests.hooks.recorded import Step, unpack
from tests.hooks.zoo import build_anew

MIXED = [
    LayerSpec(layer=1, num_experts=8, top_k=2),
    LayerSpec(layer=2, num_experts=8, top_k=2),
    LayerSpec(layer=4, num_experts=8, top_k=5),
    LayerSpec(layer=5, num_experts=65_000, top_k=2),
    LayerSpec(layer=7, num_experts=257, top_k=1),
    LayerSpec(layer=9, num_experts=8, top_k=2),
]


def _decisions(layers: list[LayerSpec], num_tokens: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Draw ids [T, K] without repetition, and weights [T, K] without order."""
    generator = torch.Generator().manual_seed(0)
    decisions = []
    for spec in layers:
        scores = torch.rand((num_tokens, spec.num_experts), generator=generator)
        ids_TK = scores.argsort(dim=1)[:, : spec.top_k]
        decisions.append((ids_TK, torch.rand(ids_TK.shape, generator=generator)))
    return decisions


def _pack(
    layers: list[LayerSpec], decisions: list[tuple[torch.Tensor, torch.Tensor]], num_tokens: int
) -> Step:
    buffer = StepBuffer(layers, keep_weights=True)
    for index, (ids_TK, weights_TK) in enumerate(decisions):
        buffer.capture(index, ids_TK, weights_TK)
    return unpack(buffer.finish(num_tokens), layers)


@pytest.mark.parametrize("num_tokens", [1, 50])
def test_layers_of_different_shape_keep_their_own_slots_in_descending_weight(
    num_tokens: int,
) -> None:
    decisions = _decisions(MIXED, num_tokens)
    step = _pack(MIXED, decisions, num_tokens)
    for spec, (ids_TK, weights_TK) in zip(MIXED, decisions, strict=True):
        for token in range(num_tokens):
            pairs = zip(weights_TK[token].tolist(), ids_TK[token].tolist(), strict=True)
            weights, ids = zip(*sorted(pairs, reverse=True), strict=True)
            assert step.ids[spec.layer][token].tolist() == list(ids)
            np.testing.assert_array_equal(
                step.weights[spec.layer][token], np.array(weights, np.float16)
            )
        assert step.ids[spec.layer].dtype == (np.uint8 if spec.num_experts <= 256 else np.uint16)


def test_equal_weights_keep_the_order_of_the_router() -> None:
    layers = [LayerSpec(layer=0, num_experts=8, top_k=4)]
    ids = torch.tensor([[7, 0, 3, 5]])
    step = _pack(layers, [(ids, torch.tensor([[0.2, 0.4, 0.2, 0.2]]))], 1)
    assert step.ids[0].tolist() == [[0, 7, 3, 5]]


def test_ids_of_batch_by_token_shape_are_rows_in_order() -> None:
    ids, weights = _decisions(MIXED[:1], 6)[0]
    flat = _pack(MIXED[:1], [(ids, weights)], 6)
    nested = _pack(MIXED[:1], [(ids.reshape(2, 3, 2), weights.reshape(2, 3, 2))], 6)
    np.testing.assert_array_equal(flat.ids[1], nested.ids[1])
    np.testing.assert_array_equal(flat.weights[1], nested.weights[1])


def test_weights_with_gradients_are_read() -> None:
    ids, weights = _decisions(MIXED[:1], 3)[0]
    step = _pack(MIXED[:1], [(ids, weights.requires_grad_())], 3)
    assert step.weights[1].shape == (3, 2)


def test_a_silent_layer_is_refused_by_name() -> None:
    buffer = StepBuffer(MIXED, keep_weights=False)
    for index, (ids, weights) in enumerate(_decisions(MIXED, 3)):
        if MIXED[index].layer not in (2, 7):
            buffer.capture(index, ids, weights)
    with pytest.raises(CaptureError, match=r"layers \[2, 7\] was not seen .* 3 tokens"):
        buffer.finish(3)
    assert buffer.captured_tokens == 0


@pytest.mark.parametrize("wrong", ["ids", "weights"])
def test_a_layer_of_another_number_of_tokens_is_refused(wrong: str) -> None:
    buffer = StepBuffer(MIXED[:2], keep_weights=False)
    (ids, weights), second = _decisions(MIXED[:2], 3)
    buffer.capture(0, *second)
    buffer.capture(1, ids[:2] if wrong == "ids" else ids, weights[:2])
    with pytest.raises(CaptureError, match=r"Layer 2 .* \(3, 2\) were expected"):
        buffer.finish(3)


def test_wide_ids_round_trip_through_a_trace(tmp_path: Path) -> None:
    model = build_anew("deepseek_v3", n_routed_experts=320, n_group=8, topk_group=4)
    ids_BP = torch.randint(5, 290, (1, 40), generator=torch.Generator().manual_seed(5))
    handed: dict[int, list[torch.Tensor]] = {}
    for layer in (1, 2, 3):
        handed[layer] = []
        model.model.layers[layer].mlp.experts.register_forward_pre_hook(
            lambda module, args, layer=layer: handed[layer].append(args[1])
        )
    steps: list[StepRows] = []
    with TransformersCapture(model, keep_weights=True) as capture, torch.no_grad():
        capture.on_step = steps.append
        model(input_ids=ids_BP)
    with TraceWriter(tmp_path / "t", layers=capture.layers, capture=Capture.WEIGHTS) as writer:
        ids_TB, weights_TS, _, token_id_T, *_ = steps[0].wait()
        sequence = Sequence(sequence_id=writer.next_sequence_id(), num_tokens=40)
        writer.write(sequence, ids_TB, token_id_T=token_id_T, weights_TS=weights_TS)
    (block,) = open_trace(tmp_path / "t").scan(weights=True)
    recorded = unpack(steps[0], capture.layers)
    for layer, (_, ids_TK) in handed.items():
        assert ids_TK.max() > 255
        np.testing.assert_array_equal(np.sort(block.topk_ids(layer)), np.sort(ids_TK.numpy()))
        np.testing.assert_array_equal(block.topk_weights(layer), recorded.weights[layer])
