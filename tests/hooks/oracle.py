"""Which experts a layer really runs, found without looking at its router.

One expert's down-projection is set to zero and the decoder layer run again on the inputs it had:
the tokens whose output moves are those the expert worked on.

Shape suffixes: T tokens, E experts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

_TOLERANCE = 1e-6


def executed_experts(
    model: nn.Module, inputs: dict[str, torch.Tensor], layers: tuple[int, ...], num_experts: int
) -> dict[int, torch.Tensor]:
    """Return, per layer, a bool [T, E]: whether the expert took part in the token's output."""
    executed = {}
    with torch.no_grad():
        calls = _recorded_calls(model, inputs, layers)
        for layer, (module, args, kwargs) in calls.items():
            plain = _run(module, args, kwargs)
            columns = []
            for expert in range(num_experts):
                with _knocked_out(module, expert):
                    moved = (_run(module, args, kwargs) - plain).abs().amax(dim=-1)
                columns.append(moved > _TOLERANCE * plain.abs().max())
            executed[layer] = torch.stack(columns, dim=1)
    return executed


def as_sets(ids_TK: Any, num_experts: int) -> torch.Tensor:
    """Return captured ids as a bool [T, E]."""
    ids = torch.as_tensor(ids_TK).long()
    return torch.zeros((len(ids), num_experts), dtype=torch.bool).scatter_(1, ids, True)


def _recorded_calls(
    model: nn.Module, inputs: dict[str, torch.Tensor], layers: tuple[int, ...]
) -> dict[int, tuple[nn.Module, Any, Any]]:
    calls: dict[int, tuple[nn.Module, Any, Any]] = {}
    handles = []
    for layer in layers:
        module = model.get_submodule(f"model.layers.{layer}")

        def note(module: nn.Module, args: Any, kwargs: Any, layer: int = layer) -> None:
            calls[layer] = (module, args, kwargs)

        handles.append(module.register_forward_pre_hook(note, with_kwargs=True))
    # A cache would grow with every repetition.
    model(**inputs, use_cache=False)
    for handle in handles:
        handle.remove()
    return calls


def _run(module: nn.Module, args: Any, kwargs: Any) -> torch.Tensor:
    output = module(*args, **kwargs)
    hidden: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return hidden.reshape(-1, hidden.shape[-1]).clone()


@contextmanager
def _knocked_out(layer: nn.Module, expert: int) -> Iterator[None]:
    """Zero one expert's down-projection and its bias, for a while."""
    changed = []
    for path, tensor in layer.named_parameters():
        if path.rpartition(".")[2] in ("down_proj", "down_proj_bias"):
            changed.append((tensor, tensor[expert].clone()))
            tensor[expert] = 0
    assert changed, "no down-projection with one slice per expert"
    try:
        yield
    finally:
        for tensor, kept in changed:
            tensor[expert] = kept
