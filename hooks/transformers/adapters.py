"""Architectures that rule A of the detector cannot read, or would misread, by class name.

To support another one, write a function that reads the decision from a module's arguments or
output, add it to `ADAPTERS`, and add the architecture to tests/hooks/zoo.py, where the knock-out
oracle proves it against what the model really computes. docs/capture.md walks through it.

Shape suffixes: T tokens, E experts, K slots.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

# (module, args, kwargs, output) -> ids [T, K], weights [T, K]; output is None before the forward.
Reader = Callable[
    [nn.Module, tuple[Any, ...], dict[str, Any], Any], tuple[torch.Tensor, torch.Tensor]
]


@dataclass(frozen=True)
class Adapter:
    """How to read one class of modules."""

    read: Reader
    before: bool
    """Whether to read before the module runs (its arguments) or after (its output)."""


def _read_llama4_router(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    # The router returns a weight for every expert, 0 for those not chosen. Its own top-k of its
    # logits is repeated rather than taken from the weights, which can underflow to 0 when chosen.
    scores_TE, logits_TE = output[:2]
    ids_TK = logits_TE.topk(module.top_k, dim=-1).indices
    return ids_TK, scores_TE.gather(-1, ids_TK)


ADAPTERS: dict[str, Adapter] = {
    "Llama4Router": Adapter(_read_llama4_router, before=False),
}

MISREAD: dict[str, str] = {
    "ZayaExperts": "its router hands tokens that skip all experts on as expert 0",
    "NllbMoeExperts": "it takes a mask for ids and runs other experts than its router chose",
    "SwitchTransformersExperts": "its router gives one mask entry per expert and drops tokens",
}
"""Classes whose arguments look like a decision but are not one, and why."""
