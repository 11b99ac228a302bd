"""What a capture records: which layers, ids beside weights, steps of generation, any backend.

Shape suffixes: T tokens, E experts, K slots.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from moe_probe.hooks.step_buffer import StepRows
from moe_probe.hooks.transformers import TransformersCapture
from tests.hooks.recorded import Step, assert_same_ids, record, unpack
from tests.hooks.zoo import LENGTHS, VOCABULARY, ZOO, build, build_anew, padded_batch

Multipliers = dict[int, list[dict[int, float]]]
"""Per layer and token, {expert: gate weight}."""


@pytest.mark.parametrize("name", ZOO)
def test_every_moe_layer_is_captured_once_per_forward(name: str) -> None:
    model, entry, batch = build(name), ZOO[name], padded_batch("right")
    with TransformersCapture(model) as capture:
        found = [(spec.layer, spec.num_experts, spec.top_k) for spec in capture.layers]
        assert found == [(layer, entry.num_experts, entry.top_k) for layer in entry.layers]
        steps: list[StepRows] = []
        capture.on_step = steps.append
        with torch.no_grad():
            model(**batch)
            model(**batch)
        num_tokens = batch["input_ids"].numel()
        assert [step.num_tokens for step in steps] == [num_tokens] * 2
        assert capture.captured_tokens == dict.fromkeys(entry.layers, 2 * num_tokens)
    first, second = (unpack(step, capture.layers) for step in steps)
    assert_same_ids(first, second)
    np.testing.assert_array_equal(first.token_ids, batch["input_ids"].reshape(-1))
    for ids in first.ids.values():
        assert ids.max() < entry.num_experts
        assert all(len(set(row)) == entry.top_k for row in ids.tolist())


def _handed_to_experts(model: nn.Module, batch: dict[str, Any]) -> Multipliers:
    """Note what the experts' own code was given."""
    handed: Multipliers = {}
    saved = []

    def spy(layer: int, module: nn.Module, run: Any) -> Any:
        def forward(hidden: Any, ids_TK: torch.Tensor, weights_TK: torch.Tensor) -> Any:
            handed[layer] = [
                dict(zip(ids, weights, strict=True))
                for ids, weights in zip(ids_TK.tolist(), weights_TK.tolist(), strict=True)
            ]
            return run(hidden, ids_TK, weights_TK)

        return forward

    for path, module in model.named_modules():
        if path.endswith(".experts"):
            module.forward = spy(int(path.split(".")[2]), module, module.forward)
            saved.append(module)
    with torch.no_grad():
        model(**batch)
    for module in saved:
        del module.forward
    return handed


def _assert_weights(step: Step, expected: Multipliers) -> None:
    assert step.weights.keys() == expected.keys()
    for layer, rows in expected.items():
        weights = step.weights[layer]
        assert weights.dtype == np.float16
        assert (np.diff(weights.astype(np.float32), axis=1) <= 0).all()
        for ids_K, weights_K, row in zip(step.ids[layer], weights, rows, strict=True):
            assert dict(zip(ids_K.tolist(), weights_K, strict=True)) == {
                expert: np.float16(weight) for expert, weight in row.items()
            }


WEIGHED = ["mixtral", "qwen3_moe", "deepseek_v2", "deepseek_v3", "gpt_oss", "glm4_moe", "phimoe"]


@pytest.mark.parametrize("name", WEIGHED)
def test_weights_are_the_multipliers_and_ids_lie_beside_them(name: str) -> None:
    model, batch = build(name), padded_batch("left")
    expected = _handed_to_experts(model, batch)
    (step,) = record(model, batch, keep_weights=True)
    _assert_weights(step, expected)


def test_weights_of_llama4_are_the_sigmoids_of_its_top_logits() -> None:
    model, expected = build("llama4_text"), Multipliers()
    # The sequence without padding: a padding token's logits are all 0, so any two experts are top.
    batch = {"input_ids": padded_batch("left")["input_ids"][:1]}

    def note(layer: int) -> Any:
        def hook(module: nn.Module, args: Any) -> None:
            logits_TE = args[0] @ module.weight.T
            values, indices = logits_TE.sigmoid().sort(dim=1, descending=True)
            expected[layer] = [
                dict(zip(ids[:2], weights[:2], strict=True))
                for ids, weights in zip(indices.tolist(), values.tolist(), strict=True)
            ]

        return hook

    handles = [
        model.model.layers[layer].feed_forward.router.register_forward_pre_hook(note(layer))
        for layer in ZOO["llama4_text"].layers
    ]
    (step,) = record(model, batch, keep_weights=True)
    for handle in handles:
        handle.remove()
    _assert_weights(step, expected)


@pytest.mark.parametrize("name", ["mixtral", "deepseek_v3", "llama4_text"])
def test_outputs_are_bit_identical_with_and_without_capture(name: str) -> None:
    model, batch = build(name), padded_batch("left")
    with torch.no_grad():
        before = model(**batch).logits
        with TransformersCapture(model, keep_weights=True):
            during = model(**batch).logits
        after = model(**batch).logits
    assert torch.equal(before, during)
    assert torch.equal(before, after)


@pytest.mark.parametrize("name", ["qwen3_moe", "deepseek_v3", "gpt_oss"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_a_sequence_alone_chooses_as_in_the_batch(name: str, side: str) -> None:
    model, batch = build(name), padded_batch(side)
    mask_BP = batch["attention_mask"].bool()
    rows = [batch["input_ids"][row][mask_BP[row]] for row in range(len(LENGTHS))]
    together, *alone = record(model, batch, *[{"input_ids": row[None]} for row in rows])
    for index, step in enumerate(alone):
        for layer, ids in together.ids.items():
            in_batch = ids.reshape(*mask_BP.shape, -1)[index][mask_BP[index].numpy()]
            np.testing.assert_array_equal(step.ids[layer], in_batch)


def test_generation_gives_one_prefill_step_and_one_step_per_token() -> None:
    model, batch = build("qwen3_moe"), padded_batch("left")
    steps: list[StepRows] = []
    with TransformersCapture(model) as capture:
        capture.on_step = steps.append
        out = model.generate(**batch, max_new_tokens=5, min_new_tokens=5, do_sample=False)
    prompt = batch["input_ids"].shape[1]
    # The last token is chosen but never fed.
    assert [step.num_tokens for step in steps] == [prompt * len(LENGTHS)] + [len(LENGTHS)] * 4
    prefill, *decoded = (unpack(step, capture.layers) for step in steps)
    for row, length in enumerate(LENGTHS):
        (alone,) = record(model, {"input_ids": out[row : row + 1, prompt - length : -1]})
        for layer, ids in alone.ids.items():
            parts = [prefill.ids[layer].reshape(len(LENGTHS), prompt, -1)[row, prompt - length :]]
            parts += [step.ids[layer][row : row + 1] for step in decoded]
            np.testing.assert_array_equal(ids, np.concatenate(parts))


def test_every_experts_implementation_gives_the_same_ids() -> None:
    batch = padded_batch("left")
    steps: list[Step] = []
    for implementation in ("eager", "batched_mm", "grouped_mm"):
        model = build_anew("deepseek_v3")
        model.set_experts_implementation(implementation)
        steps += record(model, batch, keep_weights=True)
    for step in steps[1:]:
        assert_same_ids(steps[0], step)
        for layer, weights in step.weights.items():
            # The hidden states of later layers differ in the last bits.
            np.testing.assert_allclose(weights, steps[0].weights[layer], rtol=2e-3)


def test_a_bfloat16_model_is_recorded_as_it_routes() -> None:
    model, batch = build_anew("deepseek_v3").to(torch.bfloat16), padded_batch("right")
    expected = _handed_to_experts(model, batch)
    (step,) = record(model, batch, keep_weights=True)
    _assert_weights(step, expected)


def test_embeddings_can_be_fed_instead_of_tokens() -> None:
    model, batch = build("mixtral"), padded_batch("left")
    with torch.no_grad():
        embedded = model.get_input_embeddings()(batch["input_ids"])
    by_tokens, by_embeddings = record(
        model, batch, {"inputs_embeds": embedded, "attention_mask": batch["attention_mask"]}
    )
    assert_same_ids(by_tokens, by_embeddings)
    assert by_embeddings.token_ids is None


def test_token_ids_survive_a_caller_that_reuses_its_tensor() -> None:
    model = build("mixtral")
    buffer = torch.randint(5, VOCABULARY, (1, 6), generator=torch.Generator().manual_seed(3))
    fed = buffer[0].tolist()
    steps: list[StepRows] = []
    with TransformersCapture(model) as capture, torch.no_grad():
        capture.on_step = steps.append
        model(input_ids=buffer)
    buffer.zero_()
    np.testing.assert_array_equal(steps[0].wait().token_id_T, fed)
