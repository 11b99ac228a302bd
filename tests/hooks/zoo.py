"""Tiny random models of many architectures, and padded batches to feed them.

An architecture joins by an entry in `ZOO`; every test that takes a name from it then covers it.

Shape suffixes: B sequences, P padded tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import transformers
from torch import nn

LENGTHS = (11, 7, 4)
VOCABULARY = 300
PAD = 2


@dataclass(frozen=True)
class Entry:
    """How to build one architecture, and what a capture must find in it."""

    family: str
    """Prefix of the class names of its configuration and model."""
    fields: dict[str, Any]
    layers: tuple[int, ...] = (0, 1, 2, 3)
    num_experts: int = 16
    top_k: int = 4
    config: str = "Config"
    model: str = "ForCausalLM"
    without: tuple[str, ...] = ()


_BASE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "pad_token_id": PAD,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
_MLA = {
    "kv_lora_rank": 32,
    "q_lora_rank": 48,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 16,
    "num_key_value_heads": 4,
}
_EXPERTS = {"num_experts": 16, "num_experts_per_tok": 4, "moe_intermediate_size": 32}
_LOCAL = {"num_local_experts": 16, "num_experts_per_tok": 4}
_ROUTED = {
    "n_routed_experts": 16,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 32,
    "n_shared_experts": 1,
}
_GROUPS = {"n_group": 4, "topk_group": 2}
_DENSE_FIRST = {"first_k_dense_replace": 1}
_SHARED = {"shared_expert_intermediate_size": 32}
_TYPES = {"mlp_layer_types": ["dense", "sparse", "sparse", "sparse"]}
_V2 = _ROUTED | _MLA | _DENSE_FIRST
_LATER = (1, 2, 3)

ZOO: dict[str, Entry] = {
    "mixtral": Entry("Mixtral", _LOCAL),
    "olmoe": Entry("Olmoe", {"num_experts": 16, "num_experts_per_tok": 4}),
    "qwen2_moe": Entry("Qwen2Moe", _EXPERTS | _SHARED | {"decoder_sparse_step": 2}, layers=(1, 3)),
    "qwen3_moe": Entry("Qwen3Moe", _EXPERTS | {"mlp_only_layers": [1]}, layers=(0, 2, 3)),
    "deepseek_v2": Entry("DeepseekV2", _V2 | {"topk_method": "greedy"}, layers=_LATER),
    "deepseek_v2_groups": Entry(
        "DeepseekV2", _V2 | _GROUPS | {"topk_method": "group_limited_greedy"}, layers=_LATER
    ),
    "deepseek_v3": Entry("DeepseekV3", _V2 | _GROUPS, layers=_LATER),
    "gpt_oss": Entry("GptOss", _LOCAL),
    "glm4_moe": Entry("Glm4Moe", _ROUTED | _GROUPS | _DENSE_FIRST, layers=_LATER),
    "llama4_text": Entry(
        "Llama4",
        {
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "interleave_moe_layer_step": 2,
            "intermediate_size_mlp": 96,
        },
        layers=(1, 3),
        num_experts=8,
        top_k=2,
        config="TextConfig",
    ),
    "granitemoe": Entry("GraniteMoe", _LOCAL),
    "phimoe": Entry("Phimoe", {"num_local_experts": 16, "num_experts_per_tok": 2}, top_k=2),
    "jamba": Entry(
        "Jamba",
        {
            **{"num_experts": 16, "num_experts_per_tok": 4, "mamba_d_state": 8},
            **{"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
            **{"expert_layer_period": 2, "expert_layer_offset": 1},
        },
        layers=(1, 3),
    ),
    "dots1": Entry("Dots1", _ROUTED | _GROUPS | _DENSE_FIRST, layers=_LATER),
    "ernie4_5_moe": Entry(
        "Ernie4_5_Moe",
        {
            **{"moe_num_experts": 16, "moe_k": 4, "moe_num_shared_experts": 1},
            **{"moe_intermediate_size": 32, "moe_layer_start_index": 1, "moe_layer_end_index": 3},
        },
        layers=_LATER,
    ),
    "flex_olmo": Entry("FlexOlmo", {"num_experts": 16, "num_experts_per_tok": 4}),
    "minimax_m2": Entry("MiniMaxM2", _LOCAL),
    "hunyuan_v1_moe": Entry("HunYuanMoEV1", {"num_experts": 16, "moe_topk": [4] * 4}),
    "lfm2_moe": Entry(
        "Lfm2Moe",
        _EXPERTS | {"num_dense_layers": 1, "layer_types": ["conv", "full_attention"] * 2},
        layers=_LATER,
    ),
    "glm4_moe_lite": Entry(
        "Glm4MoeLite", _ROUTED | _GROUPS | _MLA | _TYPES, layers=_LATER, without=("head_dim",)
    ),
    "solar_open": Entry("SolarOpen", _ROUTED | _GROUPS),
    "exaone_moe": Entry("ExaoneMoe", _EXPERTS | _GROUPS | _TYPES | _DENSE_FIRST, layers=_LATER),
    "cohere2_moe": Entry("Cohere2Moe", _EXPERTS | _TYPES, layers=_LATER),
    "longcat_flash": Entry(
        "LongcatFlash",
        {
            **_MLA,
            **{"n_routed_experts": 16, "zero_expert_num": 8, "moe_topk": 4, "num_layers": 2},
            **{"expert_ffn_hidden_size": 32, "ffn_hidden_size": 96},
        },
        layers=(0, 1),
        num_experts=24,
        without=("intermediate_size", "num_key_value_heads", "num_hidden_layers"),
    ),
}

_BIASES = ("e_score_correction_bias", "expert_bias", "moe_statics", "gate.bias", "router.bias")
_ROUTERS = ("gate.weight", "router.weight", "classifier.weight", "gate.layer.weight")


def config_of(name: str, **changes: Any) -> Any:
    """Return an architecture's tiny configuration."""
    entry = ZOO[name]
    base = {key: value for key, value in _BASE.items() if key not in entry.without}
    kind = getattr(transformers, f"{entry.family}{entry.config}")
    return kind(**{**base, **entry.fields, **changes})


def build_anew(name: str, *, router_scale: float = 0.12, **changes: Any) -> Any:
    """Build a model that the caller may change."""
    config = config_of(name, **changes)
    torch.manual_seed(0)
    kind = getattr(transformers, f"{ZOO[name].family}{ZOO[name].model}")
    model: nn.Module = kind._from_config(config).eval()
    generator = torch.Generator().manual_seed(1)
    tensors = [*model.named_parameters(), *model.named_buffers()]
    with torch.no_grad():
        for path, tensor in tensors:
            # Biases that change the selection and routers that spread tokens over experts; large
            # down-projections make the share of a lightly weighted expert visible in fp32.
            if any(bias in path for bias in _BIASES):
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.3)
            elif path.endswith(_ROUTERS):
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * router_scale)
            elif path.endswith("experts.down_proj"):
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.16)
    return model


@cache
def build(name: str) -> Any:
    """Return a shared model; tests leave it as it was."""
    return build_anew(name)


def padded_batch(side: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return input_ids [B, P] of `LENGTHS` tokens each, padded on a side, with their mask."""
    generator = torch.Generator().manual_seed(seed)
    longest = max(LENGTHS)
    ids_BP = torch.randint(5, VOCABULARY - 10, (len(LENGTHS), longest), generator=generator)
    mask_BP = torch.ones_like(ids_BP)
    for row, length in enumerate(LENGTHS):
        pads = slice(length, None) if side == "right" else slice(0, longest - length)
        ids_BP[row, pads], mask_BP[row, pads] = PAD, 0
    return {"input_ids": ids_BP, "attention_mask": mask_BP}
