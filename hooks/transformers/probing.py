"""Prove that every MoE layer can be read, by running two tokens through the model.

Shape suffixes: T tokens, K slots.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from moe_probe.errors import CaptureError
from moe_probe.hooks.config_facts import layer_facts, num_experts
from moe_probe.hooks.transformers.detector import Site
from moe_probe.trace import LayerSpec

_NUM_TOKENS = 2


def probe_layers(model: nn.Module, sites: list[Site]) -> list[LayerSpec]:
    """Run the model once and describe each layer by the decision it took.

    Raises:
        CaptureError: a layer stays silent, routes twice, or hands on something that is not a
            top-k decision.
    """
    seen: dict[str, torch.Tensor] = {}

    def note(site: Site) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any = None) -> None:
            if site.path in seen:
                raise CaptureError(
                    f"{site.path} routed twice in one forward pass, so its rows cannot be told "
                    "apart. Turn off gradient checkpointing and model chunking."
                )
            seen[site.path] = _checked_ids(site, *site.read(module, args, kwargs, output))

        return hook

    with ExitStack() as stack:
        for site in sites:
            stack.enter_context(hooked(site, note(site)))
        _run_two_tokens(model)
    silent = [s.path for s in sites if s.path not in seen or len(seen[s.path]) != _NUM_TOKENS]
    if silent:
        raise CaptureError(
            f"{len(silent)} of {len(sites)} MoE layers were not called with every token, "
            f"the first at {silent[0]}: the model runs its experts some other way. Load it "
            "without fused MoE kernels, on one pipeline stage."
        )
    config = getattr(model, "config", None)
    return [_layer_spec(site, seen[site.path], config) for site in sites]


@contextmanager
def hooked(site: Site, hook: Callable[..., None]) -> Iterator[None]:
    """Call a hook whenever a site's decision can be read."""
    register = (
        site.module.register_forward_pre_hook if site.before else site.module.register_forward_hook
    )
    handle = register(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def is_compiled(model: nn.Module) -> bool:
    """Whether torch.compile was applied to the model or to a part of it, in any of its forms."""
    return any(
        hasattr(module, "_orig_mod")
        or getattr(module, "_compiled_call_impl", None) is not None
        or hasattr(module.__dict__.get("forward"), "_torchdynamo_orig_callable")
        for module in model.modules()
    )


def _run_two_tokens(model: nn.Module) -> None:
    device = next(model.parameters()).device
    if device.type == "meta":
        # Offloaded by accelerate, which moves the inputs to where it computes.
        device = torch.device("cpu")
    # Graphs compiled earlier would not call the hooks.
    eager: AbstractContextManager[Any] = (
        torch.compiler.set_stance("force_eager") if is_compiled(model) else nullcontext()
    )
    with torch.no_grad(), eager:
        model(input_ids=torch.ones((1, _NUM_TOKENS), dtype=torch.long, device=device))


def _checked_ids(site: Site, ids: Any, weights: Any) -> torch.Tensor:
    """Return ids [T, K], refusing masks, per-expert weights and anything else."""
    if not isinstance(ids, torch.Tensor) or not isinstance(weights, torch.Tensor):
        given = f"{type(ids).__name__} and {type(weights).__name__}"
    elif (
        ids.is_floating_point()
        or ids.dtype is torch.bool
        or ids.shape != weights.shape
        # A mask has the same few values many times over.
        or (ids.sort(dim=-1).values.diff(dim=-1) == 0).any()
    ):
        given = f"{ids.dtype} {tuple(ids.shape)} and {weights.dtype} {tuple(weights.shape)}"
    else:
        return ids.reshape(-1, ids.shape[-1])
    raise CaptureError(
        f"{type(site.module).__name__} at {site.path} was given {given} as expert ids and "
        "weights, which is not a top-k decision. Add an adapter (docs/capture.md)."
    )


def _layer_spec(site: Site, ids_TK: torch.Tensor, config: Any) -> LayerSpec:
    experts, top_k = _num_experts(site.module, config), ids_TK.shape[1]
    low, high = int(ids_TK.min()), int(ids_TK.max())
    if not 0 <= low <= high < experts or top_k > experts:
        raise CaptureError(
            f"{site.path} chose {top_k} experts with ids from {low} to {high}, but has {experts} "
            "of them by its configuration. Load the model without expert parallelism, or add an "
            "adapter (docs/capture.md)."
        )
    facts = layer_facts(config) if config is not None else {}
    return LayerSpec(
        layer=site.layer, num_experts=experts, top_k=top_k, facts={**facts, "module": site.path}
    )


def _num_experts(module: nn.Module, config: Any) -> int:
    # The module first, since a configuration may count experts that only some layers have; but
    # under expert parallelism it counts its own share, while ids stay global.
    own = getattr(module, "num_experts", None)
    if own and not getattr(module, "_is_expert_parallel", False):
        return int(own)
    return num_experts(config) if config is not None else 0
