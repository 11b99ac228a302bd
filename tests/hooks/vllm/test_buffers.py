"""The static buffers and their operators, eager and compiled, against the plain arithmetic.

Shape suffixes: T tokens, K slots, N experts.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import numpy as np
import pytest
import torch

from moe_probe.hooks.step_buffer import StepRows
from moe_probe.hooks.vllm.buffers import StepBuffers
from moe_probe.trace import LayerSpec, RowLayout

MIXED = [
    LayerSpec(layer=0, num_experts=8, top_k=2),
    LayerSpec(layer=1, num_experts=8, top_k=2),
    LayerSpec(layer=3, num_experts=256, top_k=4),
    LayerSpec(layer=4, num_experts=257, top_k=4),
    LayerSpec(layer=6, num_experts=8, top_k=1),
]
MAX_TOKENS = 12


def buffers_of(
    layers: list[LayerSpec],
    scales: list[float] | None = None,
    *,
    max_tokens: int = MAX_TOKENS,
    sigmoid_layers: Collection[int] = (),
) -> StepBuffers:
    return StepBuffers(
        layers,
        scales or [1.0] * len(layers),
        max_tokens=max_tokens,
        device=torch.device("cpu"),
        keep_weights=True,
        sigmoid_layers=sigmoid_layers,
    )


def capture(buffers: StepBuffers, index: int, ids: torch.Tensor, weights: torch.Tensor) -> None:
    torch.ops.moe_probe.capture(buffers.ids_LTK, buffers.weights_LTK, ids, weights, index)


def capture_scalars(buffers: StepBuffers, index: int, logits: torch.Tensor) -> None:
    held = buffers.logits_LDN, buffers.scalars_LTR
    top_k, is_sigmoid = buffers.layers[index].top_k, index in buffers.sigmoid_layers
    torch.ops.moe_probe.capture_scalars(*held, logits, index, top_k, is_sigmoid)


def step(buffers: StepBuffers, num_tokens: int) -> Any:
    position_T = torch.arange(100, 100 + max(num_tokens, MAX_TOKENS))
    return StepRows(buffers.rows(num_tokens, position_T, position_T.int() * 2)).wait()


def decisions(num_tokens: int, seed: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Per layer, ids without repetition and weights without order, exact in float16."""
    generator = torch.Generator().manual_seed(seed)
    drawn = []
    for spec in MIXED:
        scores_TN = torch.rand((num_tokens, spec.num_experts), generator=generator)
        ids_TK = scores_TN.argsort(dim=1)[:, : spec.top_k]
        # Distinct in a row, so that there is one order.
        ranks_TK = torch.rand(ids_TK.shape, generator=generator).argsort(dim=1)
        drawn.append((ids_TK, (ranks_TK + 1) / 8))
    return drawn


@pytest.mark.parametrize("is_compiled", [False, True])
@pytest.mark.parametrize("ids_dtype", [torch.int32, torch.int64])
def test_layers_of_any_shape_come_out_in_descending_weight(
    is_compiled: bool, ids_dtype: torch.dtype
) -> None:
    scales = [1.0, 2.0, 0.5, 1.0, 4.0]
    buffers, layout = buffers_of(MIXED, scales), RowLayout(tuple(MIXED))

    def forward(drawn: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
        total = torch.zeros(())
        for index, (ids_TK, weights_TK) in enumerate(drawn):
            torch.ops.moe_probe.capture(
                buffers.ids_LTK, buffers.weights_LTK, ids_TK, weights_TK, index
            )
            total = total + weights_TK.sum()
        return total

    run: Any = torch.compile(forward, fullgraph=True) if is_compiled else forward
    # What a compiled graph replays must read and write anew each time.
    for seed in (0, 1):
        drawn = [(ids.to(ids_dtype), weights) for ids, weights in decisions(9, seed)]
        buffers.clear(9)
        assert run(drawn) == sum(weights.sum() for _, weights in drawn)
        rows = step(buffers, 9)
        assert not rows.is_silent_L.any()
        assert rows.position_T.tolist() == list(range(100, 109))
        assert rows.token_id_T.tolist() == list(range(200, 218, 2))
        for index, (ids_TK, weights_TK) in enumerate(drawn):
            found_TK = layout.layer_ids(rows.ids_TB, index)
            start, stop = layout.slot_offsets[index : index + 2]
            for token in range(9):
                pairs = zip(weights_TK[token].tolist(), ids_TK[token].tolist(), strict=True)
                weights, ids = zip(*sorted(pairs, reverse=True), strict=True)
                assert found_TK[token].tolist() == list(ids)
                expected = [weight * scales[index] for weight in weights]
                assert rows.weights_TS[token, start:stop].tolist() == expected


def test_rows_are_of_the_step_and_not_of_the_buffer() -> None:
    buffers = buffers_of(MIXED[:1])
    capture(buffers, 0, torch.tensor([[1, 2]] * 12), torch.ones(12, 2))
    before = step(buffers, 3)
    capture(buffers, 0, torch.tensor([[5, 6]] * 12), torch.ones(12, 2))
    assert before.ids_TB.tolist() == [[1, 2]] * 3
    assert step(buffers, 12).ids_TB.tolist() == [[5, 6]] * 12


@pytest.mark.parametrize("skipped", range(len(MIXED)))
def test_a_layer_that_wrote_nothing_is_found(skipped: int) -> None:
    buffers = buffers_of(MIXED)
    for silent in (None, skipped):
        buffers.clear(9)
        for index, (ids_TK, weights_TK) in enumerate(decisions(9)):
            if index != silent:
                capture(buffers, index, ids_TK, weights_TK)
        expected = [index == silent for index in range(len(MIXED))]
        assert step(buffers, 9).is_silent_L.tolist() == expected


def test_a_layer_that_wrote_too_few_rows_is_found_and_too_many_are_left_out() -> None:
    buffers = buffers_of(MIXED[:2])
    buffers.clear(9)
    ids, weights = torch.tensor([[1, 2]] * 40), torch.ones(40, 2)
    capture(buffers, 0, ids[:8], weights[:8])
    capture(buffers, 1, ids, weights)
    assert step(buffers, 9).is_silent_L.tolist() == [True, False]
    assert step(buffers, 8).is_silent_L.tolist() == [False, False]


@pytest.mark.parametrize("spec", MIXED, ids=lambda spec: f"{spec.num_experts} experts")
def test_ids_up_to_the_last_expert_and_no_further(spec: LayerSpec) -> None:
    buffers, layout = buffers_of([spec]), RowLayout((spec,))
    for first, is_silent in ((spec.num_experts - 1, False), (spec.num_experts, True), (-1, True)):
        buffers.clear(1)
        ids_TK = torch.tensor([[first, *range(spec.top_k - 1)]])
        capture(buffers, 0, ids_TK, torch.arange(spec.top_k, 0, -1)[None].float())
        rows = step(buffers, 1)
        assert rows.is_silent_L.tolist() == [is_silent]
        if not is_silent:
            assert layout.layer_ids(rows.ids_TB, 0).tolist() == ids_TK.tolist()


def _expected_scalars(logits: list[float], k: int, is_sigmoid: bool) -> list[float]:
    """Sums over experts in double precision."""
    scores = [1 / (1 + math.exp(-x)) if is_sigmoid else math.exp(x) for x in logits]
    shares = [score / sum(scores) for score in scores]
    entropy = -sum(share * math.log(share) for share in shares if share > 0)
    ranked = sorted(logits, reverse=True)
    margin = ranked[k - 1] - ranked[k] if k < len(logits) else 0.0
    return [math.log(sum(map(math.exp, logits))), entropy, margin]


def assert_scalars(found_TR: np.ndarray, logits: torch.Tensor, k: int, is_sigmoid: bool) -> None:
    expected = [_expected_scalars(row, k, is_sigmoid) for row in logits.tolist()]
    np.testing.assert_allclose(found_TR, expected, rtol=1e-3, atol=1e-5)


# The scalars of the first rows are computed after the step, those of the others in it.
@pytest.mark.parametrize("num_tokens", [7, 90])
@pytest.mark.parametrize("is_compiled", [False, True])
@pytest.mark.parametrize("is_sigmoid", [False, True])
@pytest.mark.parametrize("k", [1, 3, 8])
def test_router_scalars(k: int, is_sigmoid: bool, is_compiled: bool, num_tokens: int) -> None:
    layers = [LayerSpec(layer=n, num_experts=8, top_k=k, scalars=True) for n in (0, 2)]
    buffers = buffers_of(layers, max_tokens=100, sigmoid_layers=(0, 1) if is_sigmoid else ())
    generator = torch.Generator().manual_seed(k)
    logits_TN = torch.randn((num_tokens, 8), generator=generator) * 3
    logits_TN[0] = 1.5
    logits_TN[1] = torch.tensor([10.0] + [-20.0] * 7)

    def forward(logits_TN: torch.Tensor) -> torch.Tensor:
        for index in (0, 1):
            capture_scalars(buffers, index, logits_TN + index)
        return logits_TN.sum()

    run: Any = torch.compile(forward, fullgraph=True) if is_compiled else forward
    run(logits_TN)
    rows = step(buffers, num_tokens)
    for index in (0, 1):
        found_TR = rows.scalars_TR[:, 3 * index : 3 * index + 3]
        assert_scalars(found_TR, logits_TN + index, k, is_sigmoid)


def test_scalars_of_layers_of_any_shape_and_scoring() -> None:
    layers = [LayerSpec(**{**spec.to_json(), "scalars": True}) for spec in MIXED]
    buffers = buffers_of(layers, max_tokens=100, sigmoid_layers=(1, 4))
    # A long step first: what it left must not show in a short one.
    for num_tokens in (90, 9):
        generator = torch.Generator().manual_seed(num_tokens)
        logits = [torch.randn((num_tokens, s.num_experts), generator=generator) for s in layers]
        for index, logits_TN in enumerate(logits):
            capture_scalars(buffers, index, logits_TN)
        rows = step(buffers, num_tokens)
        for index, (spec, logits_TN) in enumerate(zip(layers, logits, strict=True)):
            found_TR = rows.scalars_TR[:, 3 * index : 3 * index + 3]
            assert_scalars(found_TR, logits_TN, spec.top_k, index in (1, 4))


def test_rows_in_and_after_the_step_have_the_same_scalars() -> None:
    buffers = buffers_of(
        [LayerSpec(layer=n, num_experts=64, top_k=6, scalars=True) for n in range(3)],
        max_tokens=160,
    )
    logits_TN = torch.randn((80, 64), generator=torch.Generator().manual_seed(0)).bfloat16()
    for index in range(3):
        capture_scalars(buffers, index, torch.cat([logits_TN, logits_TN]))
    scalars_TR = step(buffers, 160).scalars_TR
    # To the bit: which way a row goes depends on the other rows of its step.
    np.testing.assert_array_equal(scalars_TR[:80].view(np.int16), scalars_TR[80:].view(np.int16))


def test_scalars_of_equal_logits_are_the_closed_forms() -> None:
    layers = [LayerSpec(layer=0, num_experts=8, top_k=2, scalars=True)]
    buffers = buffers_of(layers, sigmoid_layers=(0,))
    capture_scalars(buffers, 0, torch.zeros(5, 8))
    expected = np.array([math.log(8), math.log(8), 0.0]).astype(np.float16)
    np.testing.assert_array_equal(step(buffers, 5).scalars_TR, np.tile(expected, (5, 1)))
