"""Decisions of all layers as rows of bytes: slots in order of weight, ids narrow, layers joined.

Shape suffixes: T tokens, L MoE layers, K slots, B bytes of a token's ids, S slots of all layers,
R router scalars of all layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import torch

from moe_probe.trace import LayerSpec


class Run(NamedTuple):
    """Neighbouring layers with rows of one shape; nearly every model is a single run."""

    start: int
    stop: int
    top_k: int
    itemsize: int


class PackedRows(NamedTuple):
    """Rows of one forward pass, on the device that made them."""

    ids_TB: torch.Tensor
    """uint8"""
    weights_TS: torch.Tensor | None
    """float16"""
    scalars_TR: torch.Tensor | None = None
    """float16"""
    token_id_T: torch.Tensor | None = None
    position_T: torch.Tensor | None = None
    is_silent_L: torch.Tensor | None = None
    """bool: layers that did not hand over a valid decision for every token."""


def runs_of(layers: Sequence[LayerSpec]) -> list[Run]:
    """Group neighbouring layers of one shape."""
    runs = []
    shapes = [(spec.top_k, spec.itemsize) for spec in layers]
    for (top_k, itemsize), group in groupby(range(len(layers)), shapes.__getitem__):
        indices = list(group)
        runs.append(Run(indices[0], indices[-1] + 1, top_k, itemsize))
    return runs


@torch.no_grad()
def pack(
    runs: Sequence[Run],
    ids_TLK: Sequence[torch.Tensor],
    weights_TLK: Sequence[torch.Tensor],
    *,
    keep_weights: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Pack a forward pass; slots go into descending order of weight, since most routers do not.

    Args:
        runs: Which layers the tensors hold.
        ids_TLK: Per run, expert ids [T, layers of the run, K], any integer type.
        weights_TLK: Per run, gate weights likewise.
        keep_weights: Whether to return the weights too.

    Returns:
        Ids uint8 [T, B] and weights float16 [T, S] or None, new tensors.
    """
    id_columns: list[torch.Tensor] = []
    weight_columns: list[torch.Tensor] = []
    for run, ids, weights in zip(runs, ids_TLK, weights_TLK, strict=True):
        if run.top_k > 1:
            weights, order = weights.sort(dim=-1, descending=True, stable=True)
            ids = ids.gather(-1, order)
        # Only its bytes matter, and int16 converts on every device where uint16 may not.
        narrow = ids.to(torch.uint8 if run.itemsize == 1 else torch.int16).flatten(1)
        id_columns.append(narrow.view(torch.uint8))
        if keep_weights:
            weight_columns.append(weights.to(torch.float16).flatten(1))
    return _join(id_columns), _join(weight_columns) if keep_weights else None


def _join(columns: list[torch.Tensor]) -> torch.Tensor:
    return columns[0] if len(columns) == 1 else torch.cat(columns, dim=1)
