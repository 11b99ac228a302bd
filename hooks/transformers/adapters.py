"""Architectures whose experts do not take ids and weights as arguments, by class name.

To support another one, write a function that reads the decision from a module's arguments or
output, add it to `ADAPTERS`, and add the architecture to tests/hooks/zoo.py, where the knock-out
oracle proves it against what the model really computes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Adapter:
    """How to read one class of modules."""

    read: Callable[
        [nn.Module, tuple[Any, ...], dict[str, Any], Any], tuple[torch.Tensor, torch.Tensor]
    ]
    before: bool


def _read_llama4_router(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    # Scores are sigmoid(-inf) = 0 for every expert that was not chosen, so the largest K are the
    # decision itself; the experts run on all tokens and only these scores tell them apart.
    scores_TE: torch.Tensor = output[0]
    weights_TK, ids_TK = scores_TE.topk(module.top_k, dim=-1)  # type: ignore[arg-type]
    return ids_TK, weights_TK


ADAPTERS: dict[str, Adapter] = {
    "Llama4Router": Adapter(_read_llama4_router, before=False),
}
