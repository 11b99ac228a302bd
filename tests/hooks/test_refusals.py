"""Every model that cannot be recorded completely is refused, in a sentence that says what to do."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from moe_probe.errors import CaptureError
from moe_probe.hooks.config_facts import expected_moe_layers, num_experts, recorded_facts
from moe_probe.hooks.transformers import TransformersCapture
from tests.hooks.zoo import ZOO, build_anew, config_of, padded_batch


def _refusal(model: nn.Module) -> str:
    with pytest.raises(CaptureError) as caught:
        TransformersCapture(model)
    text = str(caught.value)
    assert "\n" not in text
    # What is wrong, and what to do about it.
    assert text.rstrip(".").count(". ") >= 1
    return text


def test_a_dense_model_has_no_routers() -> None:
    config = transformers.LlamaConfig(
        **{"vocab_size": 300, "hidden_size": 64, "intermediate_size": 96},
        **{"num_hidden_layers": 2, "num_attention_heads": 4},
    )
    model = transformers.LlamaForCausalLM(config).eval()
    assert "dense model" in (text := _refusal(model))
    assert "--baseline" in text
    steps: list[Any] = []
    with TransformersCapture(model, baseline=True) as capture, torch.no_grad():
        capture.on_step = steps.append
        model(input_ids=torch.ones((2, 3), dtype=torch.long))
    assert [step.num_tokens for step in steps] == [6]


class _HiddenDecision(nn.Module):
    """A block that keeps its decision to itself."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(64, 4, bias=False)
        self.experts = nn.ModuleList(nn.Linear(64, 64) for _ in range(4))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        chosen = self.gate(hidden).argmax(dim=-1, keepdim=True)
        outputs = torch.stack([expert(hidden) for expert in self.experts], dim=-1)
        picked: torch.Tensor = outputs.gather(-1, chosen[..., None].expand(*hidden.shape, 1))
        return picked.squeeze(-1)


@pytest.mark.parametrize("layers", [[1], [0, 1, 2, 3]])
def test_a_block_that_hides_its_decision_is_named(layers: list[int]) -> None:
    model = build_anew("mixtral")
    for layer in layers:
        model.model.layers[layer].mlp = _HiddenDecision()
    text = _refusal(model)
    assert f"model.layers.{layers[0]}.mlp.experts" in text
    assert "adapter" in text


def test_a_configured_moe_without_any_readable_module_is_refused() -> None:
    model = build_anew("mixtral")
    for layer in model.model.layers:
        layer.mlp = nn.Identity()
    assert "configured with 16 experts" in _refusal(model)


def test_a_replaced_block_forward_is_found_by_the_probe() -> None:
    model = build_anew("gpt_oss")
    for layer in model.model.layers[1:3]:
        # As a fused kernel does: the experts module is there, but never called.
        layer.mlp.forward = lambda hidden: (hidden, None)
    text = _refusal(model)
    assert "2 of 4" in text
    assert "model.layers.1.mlp.experts" in text


class MaskedExperts(nn.Module):
    """Takes a mask where others take ids."""

    def __init__(self) -> None:
        super().__init__()
        self.num_experts = 16
        self.scale = nn.Parameter(torch.ones(()))

    def forward(
        self, hidden: torch.Tensor, selected_experts: torch.Tensor, routing_weights: torch.Tensor
    ) -> torch.Tensor:
        return hidden * self.scale


@pytest.mark.parametrize("kind", ["bool mask", "int mask", "two masks", "float ids"])
def test_masks_are_not_taken_for_ids(kind: str) -> None:
    model = build_anew("mixtral")
    experts = model.model.layers[2].mlp.experts = MaskedExperts()

    def mask(module: nn.Module, args: Any) -> Any:
        hidden, ids_TK, weights_TK = args
        if kind == "float ids":
            return hidden, ids_TK.float(), weights_TK
        mask_TE = torch.zeros((len(hidden), 16), dtype=torch.bool).scatter_(1, ids_TK, True)
        if kind == "two masks":
            return hidden, mask_TE.long(), mask_TE.float()
        return hidden, mask_TE if kind == "bool mask" else mask_TE.long(), weights_TK

    experts.register_forward_pre_hook(mask)
    text = _refusal(model)
    assert "MaskedExperts at model.layers.2.mlp.experts" in text
    assert "not a top-k decision" in text


def test_ids_beyond_the_number_of_experts_are_refused() -> None:
    model = build_anew("mixtral")
    experts = model.model.layers[3].mlp.experts
    experts.num_experts = 2
    experts.forward = lambda hidden, ids, weights: hidden
    assert "has 2 of them" in _refusal(model)


def test_a_layer_that_routes_twice_is_refused() -> None:
    model = build_anew("mixtral")
    model.model.layers[1].mlp = _Twice(model.model.layers[1].mlp)
    assert "routed twice" in _refusal(model)


class _Twice(nn.Module):
    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, hidden: torch.Tensor) -> Any:
        self.block(hidden)
        return self.block(hidden)


@pytest.mark.parametrize("tampering", ["silent", "twice"])
def test_what_goes_wrong_after_construction_is_caught_in_that_forward(tampering: str) -> None:
    model, batch = build_anew("mixtral"), padded_batch("left")
    block = model.model.layers[2].mlp
    run = block.forward
    steps: list[Any] = []
    with TransformersCapture(model) as capture, torch.no_grad():
        capture.on_step = steps.append
        model(**batch)
        if tampering == "silent":
            block.forward = lambda hidden: hidden
            message = r"layers \[2\] was not seen"
        else:
            block.forward = lambda hidden: (run(hidden), run(hidden))[1]
            message = "Layer 2 routed twice"
        with pytest.raises(CaptureError, match=message):
            model(**batch)
        assert len(steps) == 1
        assert set(capture.captured_tokens.values()) == {batch["input_ids"].numel()}


def test_two_routers_in_a_layer_are_refused() -> None:
    model = build_anew("mixtral")
    model.model.layers[1].second = build_anew("mixtral").model.layers[0].mlp
    assert "Layers [1] of MixtralForCausalLM have more than one router" in _refusal(model)


def test_fewer_layers_than_configured_are_refused() -> None:
    model = build_anew("deepseek_v3")
    model.model.layers[2].mlp = nn.Identity()
    text = _refusal(model)
    assert "layers [2] too" in text
    assert "found in [1, 3] only" in text


def test_more_layers_than_configured_are_no_loss() -> None:
    model = build_anew("deepseek_v3")
    model.config.first_k_dense_replace = 3
    assert [spec.layer for spec in TransformersCapture(model).layers] == [1, 2, 3]


def test_classes_that_look_readable_but_mislead_are_refused() -> None:
    config = transformers.ZayaConfig(
        **{"vocab_size": 300, "hidden_size": 64, "num_hidden_layers": 2, "head_dim": 16},
        **{"num_attention_heads": 4, "num_key_value_heads": 2, "num_experts": 8},
        **{"num_experts_per_tok": 1, "moe_intermediate_size": 32, "router_hidden_size": 32},
    )
    assert "skip all experts" in _refusal(transformers.ZayaForCausalLM(config).eval())


def test_encoder_decoder_models_are_refused() -> None:
    config = transformers.SwitchTransformersConfig(
        **{"vocab_size": 300, "d_model": 64, "d_kv": 16, "d_ff": 64, "num_layers": 2},
        **{"num_decoder_layers": 2, "num_heads": 4, "num_experts": 8, "decoder_start_token_id": 0},
    )
    model = transformers.SwitchTransformersForConditionalGeneration(config).eval()
    assert "encoder-decoder" in _refusal(model)


@pytest.mark.parametrize(
    ("distributed", "plan", "message"),
    [
        ({"pp_size": 2}, {}, "pipeline stages"),
        ({"ep_size": 2}, {"model.layers.*.mlp.gate": "ep_router"}, "renumbers expert ids"),
        ({"enable_expert_parallel": True}, {"layers.*.mlp.gate": "ep_router"}, "renumbers"),
    ],
)
def test_models_split_so_that_ids_or_layers_are_partial_are_refused(
    distributed: dict[str, Any], plan: dict[str, str], message: str
) -> None:
    model = build_anew("mixtral")
    model._ep_plan = plan
    assert TransformersCapture(model).layers
    model.config.distributed_config = SimpleNamespace(**distributed)
    assert message in _refusal(model)


def test_under_expert_parallelism_ids_stay_global() -> None:
    model = build_anew("mixtral")
    for layer in model.model.layers:
        # What sharding the experts over two ranks does to the module; its ids stay as they were.
        layer.mlp.experts._is_expert_parallel = True
        layer.mlp.experts.num_experts = 8
        layer.mlp.experts.forward = lambda hidden, ids, weights: hidden
    assert [spec.num_experts for spec in TransformersCapture(model).layers] == [16] * 4


@pytest.mark.parametrize("name", ZOO)
def test_the_configuration_agrees_with_the_model_where_it_says_anything(name: str) -> None:
    config = config_of(name)
    assert expected_moe_layers(config) in (None, list(ZOO[name].layers))
    assert num_experts(config) == ZOO[name].num_experts
    facts = recorded_facts(config)
    by_layer = facts["top_k_by_layer"]
    assert (by_layer is None) == (name != "hunyuan_v1_moe")
    slots = by_layer or [facts["top_k"]] * (max(ZOO[name].layers) + 1)
    assert {slots[layer] for layer in ZOO[name].layers} == {ZOO[name].top_k}
    assert facts["moe_layers"] in (None, list(ZOO[name].layers))
