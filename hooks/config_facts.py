"""What a model's configuration says about its experts, under the many names configurations use."""

from __future__ import annotations

from typing import Any

_NUM_EXPERTS = ("n_routed_experts", "num_local_experts", "num_experts", "moe_num_experts")
_TOP_K = (
    *("num_experts_per_tok", "num_experts_per_token"),
    *("moe_topk", "moe_top_k", "moe_k", "top_k_experts"),
)
_SHARED = ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts")
_FACTS = {
    "num_groups": ("n_group", "num_expert_group"),
    "groups_per_token": ("topk_group",),
    "scoring": ("scoring_func", "score_func"),
    "selection": ("topk_method",),
    "normalized": ("norm_topk_prob",),
    "scale": ("routed_scaling_factor",),
    "num_zero_experts": ("zero_expert_num",),
}


def text_config(config: Any) -> Any:
    """Return the part of a (perhaps multimodal) configuration that describes the language model."""
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def num_experts(config: Any) -> int:
    """Return how many experts a router chooses among, by the configuration; 0 for a dense model.

    Zero experts, which return their input, are chosen like any other.
    """
    text = text_config(config)
    return _most(text, _NUM_EXPERTS, 0) + int(getattr(text, "zero_expert_num", None) or 0)


def top_k(config: Any) -> int:
    """Return the experts per token a configuration names, the most of any layer, 1 by default."""
    return _most(text_config(config), _TOP_K, 1)


def recorded_facts(config: Any) -> dict[str, Any]:
    """Return which layers a recording must have, and how many experts per token: for run.json.

    None where the configuration does not say; `top_k_by_layer` unless it gives one number for all.
    """
    layers, text = expected_moe_layers(config), text_config(config)
    by_layer = _first(text, _TOP_K)
    return {
        "num_moe_layers": None if layers is None else len(layers),
        "moe_layers": layers,
        "top_k": top_k(config),
        "top_k_by_layer": list(by_layer) if isinstance(by_layer, list | tuple) else None,
    }


def layer_facts(config: Any) -> dict[str, Any]:
    """Return what holds for every MoE layer: shared experts, groups, scoring; absent if unset."""
    text = text_config(config)
    facts = {name: _first(text, fields) for name, fields in _FACTS.items()}
    facts["num_shared_experts"] = _first(text, _SHARED)
    shared_size = getattr(text, "shared_expert_intermediate_size", None)
    if facts["num_shared_experts"] is None and shared_size:
        facts["num_shared_experts"] = 1
    return {name: value for name, value in facts.items() if value is not None}


def expected_moe_layers(config: Any) -> list[int] | None:
    """Return the layers that are sparse according to the configuration, None if it does not say.

    Follows what the models of transformers do with these fields; `moe_layer_freq` of some
    published configurations is not among them.
    """
    text = text_config(config)
    num_layers = getattr(text, "num_hidden_layers", None)
    if num_layers is None or not num_experts(config):
        return None
    kinds = getattr(text, "mlp_layer_types", None)
    if kinds:
        return [layer for layer, kind in enumerate(kinds) if kind != "dense"]
    if getattr(text, "first_k_dense_replace", None) is not None:
        return list(range(int(text.first_k_dense_replace), num_layers))
    if getattr(text, "decoder_sparse_step", None):
        dense = set(getattr(text, "mlp_only_layers", None) or [])
        step = int(text.decoder_sparse_step)
        return [x for x in range(num_layers) if x not in dense and (x + 1) % step == 0]
    if text.model_type in ("mixtral", "olmoe", "gpt_oss", "phimoe", "granitemoe"):
        return list(range(num_layers))
    return None


def _most(text: Any, names: tuple[str, ...], default: int) -> int:
    # DBRX keeps its experts in a configuration of its own, some others one number per layer.
    value = _first(text, names) or _first(getattr(text, "ffn_config", None), names)
    return int(max(value) if isinstance(value, list | tuple) else value or default)


def _first(config: Any, names: tuple[str, ...]) -> Any:
    return next((v for name in names if (v := getattr(config, name, None)) is not None), None)
