"""Models that would give a wrong or partial trace, refused before anything is recorded."""

from __future__ import annotations

from typing import Any

from torch import nn

from moe_probe.errors import CaptureError
from moe_probe.hooks.config_facts import expected_moe_layers, num_experts
from moe_probe.trace import LayerSpec


def refuse_partial_view(model: nn.Module) -> None:
    """Refuse a model of which this process sees only a part, or two streams of tokens.

    Raises:
        CaptureError: it is split over pipeline stages, its expert ids are renumbered on every
            rank, or it is an encoder-decoder model.
    """
    config = getattr(model, "config", None)
    if getattr(config, "is_encoder_decoder", False):
        raise CaptureError(
            f"{type(model).__name__} is an encoder-decoder model, which routes two streams of "
            "tokens. Record a decoder-only model."
        )
    distributed = getattr(config, "distributed_config", None)
    if (getattr(distributed, "pp_size", None) or 1) > 1:
        raise CaptureError(
            "The model is split over pipeline stages, so this process would see some layers only. "
            "Load it with tensor parallelism or on one device."
        )
    # `ep_size` from transformers 5.19 on, `enable_expert_parallel` before.
    is_expert_parallel = (getattr(distributed, "ep_size", None) or 1) > 1 or getattr(
        distributed, "enable_expert_parallel", False
    )
    plan = getattr(model, "_ep_plan", None) or {}
    # Up to 5.19 some plans gave the router a style of its own, which renumbers ids on every rank.
    if is_expert_parallel and any("router" in str(style) for style in plan.values()):
        raise CaptureError(
            "This expert-parallel plan renumbers expert ids on every rank (ep_router), so ids "
            "would be wrong. Load the model with tensor parallelism or on one device."
        )


def refuse_without_sites(model: nn.Module) -> None:
    """Say why a model offers nothing to record; raises CaptureError always."""
    name, config = type(model).__name__, getattr(model, "config", None)
    experts = num_experts(config) if config is not None else 0
    if experts > 1:
        raise CaptureError(
            f"{name} is configured with {experts} experts, but no module takes a top-k decision "
            "that can be read. Load it without fused MoE kernels, or add an adapter "
            "(docs/capture.md)."
        )
    raise CaptureError(
        f"{name} is a dense model: it has no routers to record. "
        "Use --baseline to record its scores only, for comparison."
    )


def refuse_missing_layers(layers: list[LayerSpec], config: Any) -> None:
    """Refuse a model in which fewer MoE layers were found than its configuration has.

    More than expected is no loss: then it is the configuration that was misunderstood.

    Raises:
        CaptureError: layers are missing.
    """
    expected = expected_moe_layers(config) if config is not None else None
    found = [spec.layer for spec in layers]
    missing = sorted(set(expected or []) - set(found))
    if missing:
        raise CaptureError(
            f"By its configuration the model has experts in layers {missing} too, but they were "
            f"found in {found} only, so the trace would be partial. Load it without fused MoE "
            "kernels, or add an adapter (docs/capture.md)."
        )
