"""Before anything is recorded: vLLM and transformers agree on what the tiny models say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.vllm.engines import engine, generate
from tests.vllm.reference import Reference, assert_same_routing
from tests.vllm.zoo import ZOO, prompts_of


@pytest.mark.parametrize("name", ZOO)
def test_vllm_computes_what_transformers_does(
    name: str, checkpoint: Callable[[str], Path], reference: Callable[[str], Reference]
) -> None:
    entry, prompts = ZOO[name], prompts_of(ZOO[name])
    with engine(checkpoint(name), **entry.arguments) as llm:
        answers = generate(llm, prompts, 12, prompt_logprobs=0)
    for prompt, answer in zip(prompts, answers, strict=True):
        assert answer["tokens"] == reference(name).greedy(prompt, 12)
        expected = reference(name).logprobs(prompt)
        np.testing.assert_allclose(answer["logprobs"], expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", ZOO)
def test_routing_is_as_the_zoo_says_and_without_ties(
    name: str, reference: Callable[[str], Reference]
) -> None:
    entry = ZOO[name]
    for prompt, routing in zip(
        prompts_of(entry), reference(name).routing(prompts_of(entry)), strict=True
    ):
        assert tuple(routing.ids) == entry.layers
        for layer in entry.layers:
            assert routing.ids[layer].shape == (len(prompt), entry.top_k)
            assert routing.logits[layer].shape == (len(prompt), entry.num_experts)
            ranked_TN = np.sort(routing.logits[layer], axis=1)
            assert np.diff(ranked_TN, axis=1)[:, -entry.top_k :].min() > 2e-6


def test_comparison_notices_a_wrong_expert_weight_or_position(
    reference: Callable[[str], Reference],
) -> None:
    prompt = prompts_of(ZOO["qwen3_moe"])[0]
    (expected,) = reference("qwen3_moe").routing([prompt])
    backwards = np.arange(len(prompt))[::-1]
    ids = {layer: ids_TK[::-1, ::-1] for layer, ids_TK in expected.ids.items()}
    weights = {layer: weights_TK[::-1, ::-1] for layer, weights_TK in expected.weights.items()}
    assert_same_routing(expected, backwards, ids, weights)

    other = {**ids, 2: (ids[2] + 1) % 16}
    with pytest.raises(AssertionError, match="experts of layer 2"):
        assert_same_routing(expected, backwards, other, weights)
    heavier = {**weights, 3: weights[3] + 2e-4}
    with pytest.raises(AssertionError, match="weights of layer 3"):
        assert_same_routing(expected, backwards, ids, heavier)
    with pytest.raises(AssertionError):
        assert_same_routing(expected, np.minimum(backwards, 5), ids, weights)
    with pytest.raises(AssertionError, match="other layers"):
        assert_same_routing(expected, backwards, {0: ids[0]}, weights)
