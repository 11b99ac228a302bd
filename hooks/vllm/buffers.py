"""Static device buffers that hold one step's decisions, and the operators that write them.

A captured or compiled graph replays what it recorded and runs no Python, so the way from a router
to the buffers is nothing but an operator with declared effects.

Shape suffixes: T tokens, L MoE layers of this stage, K slots, N experts, R router scalars.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from moe_probe.hooks.packing import PackedRows, pack, runs_of
from moe_probe.trace import ROUTER_SCALARS, LayerSpec

_LIBRARY: Any = torch.library.Library("moe_probe", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define(
    "capture(Tensor(a!) ids_LTK, Tensor(b!) weights_LTK, Tensor topk_ids, Tensor topk_weights, "
    "int index) -> ()"
)
_LIBRARY.define(
    "capture_scalars(Tensor(a!) scalars_LTR, Tensor logits, int index, int k, "
    "bool is_sigmoid) -> ()"
)


def _capture(
    ids_LTK: torch.Tensor,
    weights_LTK: torch.Tensor,
    topk_ids: torch.Tensor,
    topk_weights: torch.Tensor,
    index: int,
) -> None:
    # More rows than a step can have are none of a recorded step: an error would end the engine.
    rows, slots = min(len(topk_ids), ids_LTK.shape[1]), topk_ids.shape[1]
    ids_LTK[index, :rows, :slots].copy_(topk_ids[:rows])
    weights_LTK[index, :rows, :slots].copy_(topk_weights[:rows])


def _capture_scalars(
    scalars_LTR: torch.Tensor, logits: torch.Tensor, index: int, k: int, is_sigmoid: bool
) -> None:
    logits_TN = logits[: scalars_LTR.shape[1]].float()
    z_T = logits_TN.logsumexp(dim=-1)
    p_TN = logits_TN.sigmoid() if is_sigmoid else logits_TN.softmax(dim=-1)
    p_TN = p_TN / p_TN.sum(dim=-1, keepdim=True)
    entropy_T = torch.special.entr(p_TN).sum(dim=-1)
    if k < logits_TN.shape[1]:
        best_TK = logits_TN.topk(k + 1, dim=-1).values
        margin_T = best_TK[:, k - 1] - best_TK[:, k]
    else:
        margin_T = torch.zeros_like(entropy_T)
    values_TR = torch.stack([z_T, entropy_T, margin_T], dim=-1)
    scalars_LTR[index, : len(values_TR)].copy_(values_TR)


def _nothing(*arguments: object) -> None:
    return None


for _key in ("CPU", "CUDA", "XPU"):
    _LIBRARY.impl("capture", _capture, _key)
    _LIBRARY.impl("capture_scalars", _capture_scalars, _key)
_LIBRARY.impl("capture", _nothing, "Meta")
_LIBRARY.impl("capture_scalars", _nothing, "Meta")


class StepBuffers:
    """Where the routers of one model stage leave their decisions, step after step.

    Args:
        layers: The MoE layers of the stage, in model order.
        scales: What each layer's weights are multiplied by after the experts.
        max_tokens: Most tokens of a step, padding of graphs included.
        device: The model's device.
        keep_weights: Whether rows carry gate weights.
    """

    def __init__(
        self,
        layers: Sequence[LayerSpec],
        scales: Sequence[float],
        *,
        max_tokens: int,
        device: torch.device,
        keep_weights: bool,
    ) -> None:
        self.layers = list(layers)
        self._runs = runs_of(layers)
        self._keep_weights = keep_weights
        shape = (len(self.layers), max_tokens, max(spec.top_k for spec in layers))
        self.ids_LTK = torch.full(shape, -1, dtype=torch.int32, device=device)
        self.weights_LTK = torch.zeros(shape, dtype=torch.float32, device=device)
        self.scalars_LTR: torch.Tensor | None = None
        if any(spec.scalars for spec in layers):
            self.scalars_LTR = self.weights_LTK.new_zeros(*shape[:2], len(ROUTER_SCALARS))
        experts = [spec.num_experts for spec in layers]
        self._experts_L = torch.tensor(experts, dtype=torch.int32, device=device)
        self._scales_L: torch.Tensor | None = None
        if any(scale != 1.0 for scale in scales):
            self._scales_L = torch.tensor(scales, dtype=torch.float32, device=device)

    def clear(self, num_tokens: int) -> None:
        """Before a step: mark every layer's rows as not written."""
        # One slot of each row is enough, since a layer writes all its slots or none.
        self.ids_LTK[:, :num_tokens, 0].fill_(-1)

    @torch.no_grad()
    def rows(
        self, num_tokens: int, position_T: torch.Tensor, token_id_T: torch.Tensor
    ) -> PackedRows:
        """After a step: its packed rows, in new tensors on the device; nothing waits for it."""
        ids, weights = [], []
        is_silent: list[torch.Tensor] = []
        for run in self._runs:
            layers = slice(run.start, run.stop)
            ids_LTK = self.ids_LTK[layers, :num_tokens, : run.top_k]
            weights_LTK = self.weights_LTK[layers, :num_tokens, : run.top_k]
            if self._scales_L is not None:
                weights_LTK = weights_LTK * self._scales_L[layers, None, None]
            low_L, high_L = ids_LTK.amin(dim=(1, 2)), ids_LTK.amax(dim=(1, 2))
            is_silent.append((low_L < 0) | (high_L >= self._experts_L[layers]))
            ids.append(ids_LTK.transpose(0, 1))
            weights.append(weights_LTK.transpose(0, 1))
        packed_ids, packed_weights = pack(self._runs, ids, weights, keep_weights=self._keep_weights)
        scalars = None
        if self.scalars_LTR is not None:
            scalars_LTR = self.scalars_LTR[:, :num_tokens].to(torch.float16)
            scalars = scalars_LTR.transpose(0, 1).flatten(1).contiguous()
        return PackedRows(
            packed_ids,
            packed_weights,
            scalars,
            token_id_T[:num_tokens].clone(),
            position_T[:num_tokens].clone(),
            torch.cat(is_silent),
        )
