"""Static device buffers that hold one step's decisions, and the operators that write them.

A captured or compiled graph replays what it recorded and runs no Python, so the way from a router
to the buffers is nothing but an operator with declared effects.

Shape suffixes: T tokens, L MoE layers of this stage, K slots, N experts, R router scalars, D rows
whose scalars are deferred.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch

from moe_probe.hooks.packing import PackedRows, pack, runs_of
from moe_probe.trace import ROUTER_SCALARS, LayerSpec

_LIBRARY: Any = torch.library.Library("moe_probe", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define(
    "capture(Tensor(a!) ids_LTK, Tensor(b!) weights_LTK, Tensor topk_ids, Tensor topk_weights, "
    "int index) -> ()"
)
_LIBRARY.define(
    "capture_scalars(Tensor(a!) logits_LDN, Tensor(b!) scalars_LTR, Tensor logits, int index, "
    "int k, bool is_sigmoid) -> ()"
)
# Rows of a step whose scalars wait until every layer has run: those of a step that decodes, for
# which starting an operator costs more than its work.
_DEFERRED_ROWS, _DEFERRED_ROWS_ON_CPU = 512, 64


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
    logits_LDN: torch.Tensor,
    scalars_LTR: torch.Tensor,
    logits: torch.Tensor,
    index: int,
    k: int,
    is_sigmoid: bool,
) -> None:
    rows, num_experts = min(len(logits), scalars_LTR.shape[1]), logits.shape[1]
    deferred = min(rows, logits_LDN.shape[1])
    logits_LDN[index, :deferred, :num_experts].copy_(logits[:deferred])
    if rows > deferred:
        scalars_TR = _router_scalars(logits[deferred:rows].float(), k, is_sigmoid)
        scalars_LTR[index, deferred:rows].copy_(scalars_TR)


def _router_scalars(logits: torch.Tensor, k: int, is_sigmoid: bool) -> torch.Tensor:
    """ROUTER_SCALARS [..., R] of logits [..., N], float32."""
    logsumexp = logits.logsumexp(dim=-1)
    shares = logits.sigmoid() if is_sigmoid else logits.softmax(dim=-1)
    shares = shares / shares.sum(dim=-1, keepdim=True)
    entropy = torch.special.entr(shares).sum(dim=-1)
    if k < logits.shape[-1]:
        best = logits.topk(k + 1, dim=-1).values
        margin = best[..., k - 1] - best[..., k]
    else:
        margin = torch.zeros_like(entropy)
    return torch.stack([logsumexp, entropy, margin], dim=-1)


def _nothing(*arguments: object) -> None:
    return None


for _key in ("CPU", "CUDA", "XPU"):
    _LIBRARY.impl("capture", _capture, _key)
    _LIBRARY.impl("capture_scalars", _capture_scalars, _key)
_LIBRARY.impl("capture", _nothing, "Meta")
_LIBRARY.impl("capture_scalars", _nothing, "Meta")


class _Scoring(NamedTuple):
    """Neighbouring layers whose scalars are computed alike; nearly every model has one such run."""

    layers: slice
    num_experts: int
    top_k: int
    is_sigmoid: bool


class StepBuffers:
    """Where the routers of one model stage leave their decisions, step after step.

    Args:
        layers: The MoE layers of the stage, in model order.
        scales: What each layer's weights are multiplied by after the experts.
        max_tokens: Most tokens of a step, padding of graphs included.
        device: The model's device.
        keep_weights: Whether rows carry gate weights.
        sigmoid_layers: Indices of the layers whose router scores by sigmoid, not by softmax.
    """

    def __init__(
        self,
        layers: Sequence[LayerSpec],
        scales: Sequence[float],
        *,
        max_tokens: int,
        device: torch.device,
        keep_weights: bool,
        sigmoid_layers: Collection[int] = (),
    ) -> None:
        self.layers = list(layers)
        self._runs = runs_of(layers)
        self._keep_weights = keep_weights
        shape = (len(self.layers), max_tokens, max(spec.top_k for spec in layers))
        self.ids_LTK = torch.full(shape, -1, dtype=torch.int32, device=device)
        self.weights_LTK = torch.zeros(shape, dtype=torch.float32, device=device)
        self.scalars_LTR: torch.Tensor | None = None
        self.logits_LDN: torch.Tensor | None = None
        experts = [spec.num_experts for spec in layers]
        if any(spec.scalars for spec in layers):
            self.scalars_LTR = self.weights_LTK.new_zeros(*shape[:2], len(ROUTER_SCALARS))
            most = _DEFERRED_ROWS_ON_CPU if device.type == "cpu" else _DEFERRED_ROWS
            deferred = min(max_tokens, most)
            self.logits_LDN = self.weights_LTK.new_zeros(len(layers), deferred, max(experts))
        self.sigmoid_layers = frozenset(sigmoid_layers)
        self._scorings = _scorings_of(layers, self.sigmoid_layers)
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
        if self.scalars_LTR is not None and self.logits_LDN is not None:
            scalars_LTR = self.scalars_LTR[:, :num_tokens]
            self._compute_deferred(self.logits_LDN[:, :num_tokens], scalars_LTR)
            scalars = scalars_LTR.to(torch.float16).transpose(0, 1).flatten(1).contiguous()
        return PackedRows(
            packed_ids,
            packed_weights,
            scalars,
            token_id_T[:num_tokens].clone(),
            position_T[:num_tokens].clone(),
            torch.cat(is_silent),
        )

    def _compute_deferred(self, logits_LDN: torch.Tensor, scalars_LTR: torch.Tensor) -> None:
        # A dozen operators for all layers: as many in each layer would cost a step that decodes
        # more than all the rest of recording.
        for layers, num_experts, top_k, is_sigmoid in self._scorings:
            logits = logits_LDN[layers, :, :num_experts]
            scalars_LTR[layers, : logits.shape[1]] = _router_scalars(logits, top_k, is_sigmoid)


def _scorings_of(layers: Sequence[LayerSpec], sigmoid_layers: Collection[int]) -> list[_Scoring]:
    runs = []
    kinds = [(s.num_experts, s.top_k, i in sigmoid_layers) for i, s in enumerate(layers)]
    for kind, group in groupby(range(len(layers)), kinds.__getitem__):
        indices = list(group)
        runs.append(_Scoring(slice(indices[0], indices[-1] + 1), *kind))
    return runs
