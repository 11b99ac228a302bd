"""Find the routers of a loaded model and make each of them hand its decision to the buffers.

Shape suffixes: T tokens, K slots, N experts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from moe_probe.errors import CaptureError
from moe_probe.hooks.config_facts import expected_moe_layers, layer_facts, num_experts
from moe_probe.hooks.vllm.buffers import StepBuffers
from moe_probe.hooks.vllm.parallel import local_rows
from moe_probe.trace import Capture, LayerSpec

_ADVICE = "Record it with --backend hf, or run another model."


@dataclass(frozen=True)
class RouterSite:
    """One MoE layer of the engine's model."""

    name: str
    module: Any
    """vLLM's MoERunner."""
    spec: LayerSpec
    scale: float
    """What the runner multiplies the experts' output by; it belongs to the weights."""
    num_shared_slots: int
    """Shared experts that the router appends to every token's slots."""

    @property
    def is_sigmoid(self) -> bool:
        """Whether the router scores by sigmoid, not by softmax."""
        return bool(getattr(self.module.router, "scoring_func", "") == "sigmoid")

    @property
    def is_shadow(self) -> bool:
        """Whether the layer's kernel routes inside: the router then has to be asked beside it."""
        return bool(self.module._quant_method.is_monolithic)


def find_routers(model: nn.Module, config: Any, capture: Capture) -> list[RouterSite]:
    """Find every MoE layer that this process runs, in model order.

    Args:
        model: The target model of the engine, without draft models.
        config: The model's Hugging Face configuration.
        capture: At `weights` the layers give router scalars too.

    Raises:
        CaptureError: there is none, or one that cannot be read exactly.
    """
    from vllm.model_executor.layers.fused_moe.layer import MoERunner

    facts = layer_facts(config)
    sites = [
        _site(name, module, facts, capture)
        for name, module in model.named_modules()
        if isinstance(module, MoERunner)
    ]
    layers = [site.spec.layer for site in sites]
    if len(set(layers)) < len(layers):
        raise CaptureError(f"Some of layers {layers} have more than one router each. {_ADVICE}")
    _refuse_missing(model, layers, config)
    return sites


def _site(name: str, module: Any, facts: dict[str, Any], capture: Capture) -> RouterSite:
    from vllm.model_executor.layers.fused_moe.router.base_router import BaseRouter

    router, moe = module.router, module.moe_config
    kind = type(router).__name__
    if not isinstance(router, BaseRouter) or not callable(getattr(router, "_compute_routing", 0)):
        raise CaptureError(f"{name} routes by {kind}, whose decision cannot be read. {_ADVICE}")
    if kind == "ZeroExpertRouter":
        raise CaptureError(
            f"{name} has zero experts, which {kind} hides behind expert 0. {_ADVICE}"
        )
    sees_logits = capture is Capture.WEIGHTS
    spec = LayerSpec(
        layer=int(module.layer_id),
        num_experts=int(moe.num_logical_experts),
        top_k=int(moe.experts_per_token),
        scalars=sees_logits,
        facts={**facts, "module": name, "router": kind},
    )
    if module._quant_method.is_monolithic:
        spec.facts["source"] = "router called beside a kernel that routes inside"
    shared = int(getattr(router, "num_fused_shared_experts", 0) or 0)
    return RouterSite(name, module, spec, float(module.routed_scaling_factor), shared)


def _refuse_missing(model: nn.Module, layers: list[int], config: Any) -> None:
    """Refuse a model of which some MoE layer on this pipeline stage was not found."""
    # Perhaps inside a multimodal wrapper.
    staged = (part for part in model.modules() if hasattr(part, "end_layer"))
    inner = next(staged, None)
    start, end = getattr(inner, "start_layer", 0), getattr(inner, "end_layer", 1 << 30)
    expected = [n for n in expected_moe_layers(config) or [] if start <= n < end]
    missing = sorted(set(expected) - set(layers))
    if missing:
        raise CaptureError(
            f"By its configuration the model has experts in layers {missing} too, but routers were "
            f"found in {layers} only. {_ADVICE}"
        )
    if not layers and not expected_moe_layers(config):
        name = type(model).__name__
        if num_experts(config):
            raise CaptureError(f"{name} routes by code of its own, which cannot be read. {_ADVICE}")
        raise CaptureError(f"{name} is a dense model: it has no routers to record.")


def bind(sites: list[RouterSite], buffers: StepBuffers) -> None:
    """Wrap each router; from now on every forward pass fills the buffers."""
    for index, site in enumerate(sites):
        _wrap_router(index, site, buffers)
        if site.is_shadow:
            _wrap_kernel(site)


def _wrap_router(index: int, site: RouterSite, buffers: StepBuffers) -> None:
    router, top_k = site.module.router, site.spec.top_k
    route, is_sigmoid = router._compute_routing, index in buffers.sigmoid_layers
    num_experts, widths = site.spec.num_experts, (top_k, top_k + site.num_shared_slots)
    select = local_rows(site.module.moe_config)
    ids_LTK, weights_LTK = buffers.ids_LTK, buffers.weights_LTK
    logits_LDN, scalars_LTR = buffers.logits_LDN, buffers.scalars_LTR
    capture, capture_scalars = torch.ops.moe_probe.capture, torch.ops.moe_probe.capture_scalars

    def compute_routing(
        hidden_states: torch.Tensor,
        router_logits: torch.Tensor,
        indices_type: torch.dtype | None,
        *,
        input_ids: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        weights, ids = route(hidden_states, router_logits, indices_type, input_ids=input_ids)
        rows = select(ids)
        # Any other width is not a decision as known: left unwritten, which the check finds.
        if rows is not None and ids.shape[1] in widths:
            capture(ids_LTK, weights_LTK, ids[rows, :top_k], weights[rows, :top_k], index)
            if scalars_LTR is not None:
                logits = router_logits[rows, :num_experts]
                capture_scalars(logits_LDN, scalars_LTR, logits, index, top_k, is_sigmoid)
        return weights, ids

    router._compute_routing = compute_routing


def _wrap_kernel(site: RouterSite) -> None:
    """Ask the router what a kernel that routes inside decides, from the same logits."""
    experts, router = site.module.routed_experts, site.module.router
    forward = experts.forward_monolithic

    def forward_monolithic(
        x: torch.Tensor, router_logits: torch.Tensor, input_ids: torch.Tensor | None = None
    ) -> Any:
        router._compute_routing(x, router_logits, None, input_ids=input_ids)
        return forward(x=x, router_logits=router_logits, input_ids=input_ids)

    experts.forward_monolithic = forward_monolithic
