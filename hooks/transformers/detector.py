"""Find where a transformers model hands a routing decision to its experts.

Rule A: the module that computes the experts takes the chosen ids and the gate weights as arguments,
whatever the router did before (bias, groups, hashing). It is recognised by its argument names and
never by the position of a router's outputs, which differs between architectures and releases.

An architecture rule A cannot read gets an entry in `adapters.ADAPTERS`; adapters go first.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from moe_probe.errors import CaptureError
from moe_probe.hooks.transformers.adapters import ADAPTERS, MISREAD, Reader

_IDS_NAMES = {
    *("top_k_index", "top_k_indices", "topk_indices", "topk_ids", "topk_idx"),
    *("router_indices", "selected_experts", "expert_indices"),
}
_WEIGHTS_NAMES = {
    *("top_k_weights", "top_k_weight", "topk_weights", "topk_weight"),
    *("routing_weights", "router_weights", "expert_weights"),
}


@dataclass(frozen=True)
class Site:
    """One place where a decision can be read."""

    path: str
    """Module path in the model."""
    layer: int
    """The decoder layer's index."""
    module: nn.Module
    read: Reader
    before: bool
    """Whether to read before the module runs (its arguments) or after (its output)."""


def find_sites(model: nn.Module) -> list[Site]:
    """Find every MoE layer of a model, in model order.

    Raises:
        CaptureError: the model has a block of experts that no rule can read, or two in one layer.
    """
    sites = []
    for path, module in model.named_modules():
        # Where a part was compiled on its own, its path names the wrapper too.
        path = path.replace("_orig_mod.", "")
        name = type(module).__name__
        if name in MISREAD:
            raise CaptureError(
                f"{name} at {path} cannot be recorded: {MISREAD[name]}, so its trace would be "
                "wrong. Add an adapter (docs/capture.md)."
            )
        if (adapter := ADAPTERS.get(name)) is not None:
            sites.append(Site(path, _layer(path), module, adapter.read, adapter.before))
        elif (read := _reader_of_arguments(module)) is not None:
            sites.append(Site(path, _layer(path), module, read, True))
    _refuse_unread(model, sites)
    layers = [site.layer for site in sites]
    twice = sorted({layer for layer in layers if layers.count(layer) > 1})
    if twice:
        raise CaptureError(
            f"Layers {twice} of {type(model).__name__} have more than one router each, which a "
            "trace cannot tell apart. Use a model with one MoE block per layer."
        )
    return sites


def _reader_of_arguments(module: nn.Module) -> Reader | None:
    """Return a reader of the experts' arguments if the module takes ids and weights."""
    if not re.search("expert|moe", type(module).__name__, re.IGNORECASE):
        return None
    # Of the class: an instance's forward may be wrapped as (*args, **kwargs) by accelerate or TP.
    parameters = list(inspect.signature(type(module).forward).parameters)[1:]
    ids = [name for name in parameters if name in _IDS_NAMES]
    weights = [name for name in parameters if name in _WEIGHTS_NAMES]
    if len(ids) != 1 or len(weights) != 1 or not any(True for _ in module.parameters()):
        return None
    ids_at, weights_at = parameters.index(ids[0]), parameters.index(weights[0])

    def read(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return (
            kwargs[ids[0]] if ids[0] in kwargs else args[ids_at],
            kwargs[weights[0]] if weights[0] in kwargs else args[weights_at],
        )

    return read


def _refuse_unread(model: nn.Module, sites: list[Site]) -> None:
    """Refuse a model in which some block holds experts but no site reads it."""
    read = {site.path for site in sites}
    for path, module in model.named_modules():
        path = path.replace("_orig_mod.", "")
        block, _, name = path.rpartition(".")
        if name != "experts" or "shared" in block.rpartition(".")[2]:
            continue
        if not any(p == block or p.startswith(f"{block}.") for p in read):
            raise CaptureError(
                f"{path} holds experts ({type(module).__name__}), but how they are chosen cannot "
                "be read. Load the model without fused or quantised MoE kernels, or add an "
                "adapter (docs/capture.md)."
            )


def _layer(path: str) -> int:
    found = re.search(r"(?:^|\.)(\d+)(?:\.|$)", path)
    if found is None:
        raise CaptureError(
            f"{path} holds experts outside any numbered layer, so its rows would have no layer. "
            "Record the decoder that contains it."
        )
    return int(found.group(1))
