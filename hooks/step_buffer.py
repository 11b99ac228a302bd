"""What one forward pass of a model decided, gathered on the device and copied to the host once.

Engine-neutral: an engine's hooks call `capture` per layer and `finish` per forward pass.

Shape suffixes: T tokens, L MoE layers, K slots, B bytes of one token's ids, S slots over all layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np
import torch

from moe_probe.errors import CaptureError
from moe_probe.trace import LayerSpec, RowLayout


class StepRows:
    """Packed rows of one forward pass, on their way to the host."""

    def __init__(
        self, ids_TB: torch.Tensor, weights_TS: torch.Tensor | None, token_id_T: torch.Tensor | None
    ) -> None:
        self.num_tokens = len(ids_TB)
        self._tensors = [_to_host(ids_TB), _to_host(weights_TS), _to_host(token_id_T)]
        self._event: torch.cuda.Event | None = None
        if ids_TB.is_cuda:
            self._event = torch.cuda.Event()
            self._event.record()

    def wait(self) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
        """Return ids uint8 [T, B], weights float16 [T, S], fed token ids [T], once they are here."""
        if self._event is not None:
            self._event.synchronize()
        ids_TB, weights_TS, token_id_T = self._tensors
        assert ids_TB is not None
        return (
            ids_TB.numpy(),
            None if weights_TS is None else weights_TS.numpy(),
            None if token_id_T is None else token_id_T.numpy(),
        )


class StepBuffer:
    """Holds references to each layer's decision until the forward pass is over.

    Args:
        layers: The MoE layers, in the order the model runs them.
        keep_weights: Whether gate weights are wanted too.
    """

    def __init__(self, layers: Sequence[LayerSpec], *, keep_weights: bool) -> None:
        self.layout = RowLayout(tuple(layers))
        self._keep_weights = keep_weights
        self._ids: list[torch.Tensor | None] = [None] * len(layers)
        self._weights: list[torch.Tensor | None] = [None] * len(layers)
        self.captured_L = np.zeros(len(layers), np.int64)
        """Tokens captured so far, per layer."""

    def capture(self, index: int, ids_TK: torch.Tensor, weights_TK: torch.Tensor) -> None:
        """Keep a layer's decision. Nothing is computed or copied here.

        Raises:
            CaptureError: the layer was captured already in this forward pass.
        """
        if self._ids[index] is not None:
            raise CaptureError(
                f"Layer {self.layout.layers[index].layer} routed twice in one forward pass, so its "
                "rows cannot be told apart. Turn off gradient checkpointing and model chunking."
            )
        self._ids[index] = ids_TK
        self._weights[index] = weights_TK

    def discard(self) -> None:
        """Forget a forward pass that failed."""
        self._ids = [None] * len(self._ids)
        self._weights = [None] * len(self._weights)

    def finish(self, num_tokens: int, token_ids: torch.Tensor | None = None) -> StepRows:
        """Close the forward pass: check it is complete, pack it, start the copy to the host.

        Slots are put in descending order of gate weight, since most routers leave them unsorted.

        Args:
            num_tokens: Tokens the forward pass was given.
            token_ids: The fed vocabulary ids, to travel along without a synchronisation.

        Raises:
            CaptureError: a layer was not captured, or for another number of tokens.
        """
        layers = self.layout.layers
        silent = [s.layer for s, ids in zip(layers, self._ids, strict=True) if ids is None]
        ids = [tensor for tensor in self._ids if tensor is not None]
        weights = [tensor for tensor in self._weights if tensor is not None]
        self.discard()
        if silent:
            raise CaptureError(
                f"Routing of layers {silent} was not seen in a forward pass of {num_tokens} tokens: "
                "their experts were called some other way. Load the model without fused MoE "
                "kernels (for example experts_implementation=eager)."
            )
        ids = [tensor.reshape(-1, tensor.shape[-1]) for tensor in ids]
        for spec, tensor in zip(layers, ids, strict=True):
            if tensor.shape != (num_tokens, spec.top_k):
                raise CaptureError(
                    f"Layer {spec.layer} routed {tuple(tensor.shape)} (tokens, slots) where "
                    f"{(num_tokens, spec.top_k)} were expected. Rows cannot be told apart."
                )
        self.captured_L += num_tokens
        tokens = None if token_ids is None else token_ids.reshape(-1)
        if not layers:
            return StepRows(torch.empty((num_tokens, 0), dtype=torch.uint8), None, tokens)
        weights = [tensor.reshape(num_tokens, -1) for tensor in weights]
        packed_ids, packed_weights = self._pack(ids, weights)
        return StepRows(packed_ids, packed_weights, tokens)

    def _pack(
        self, ids: list[torch.Tensor], weights: list[torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        device = ids[0].device
        id_columns: list[torch.Tensor] = []
        weight_columns: list[torch.Tensor] = []
        layers = self.layout.layers
        # One sort per run of layers of the same shape; for nearly every model, one in all.
        for _, run in groupby(range(len(layers)), lambda i: (layers[i].top_k, layers[i].itemsize)):
            indices = list(run)
            spec = layers[indices[0]]
            ids_LTK = torch.stack([ids[i].to(device, non_blocking=True) for i in indices])
            weights_LTK = torch.stack([weights[i].to(device, non_blocking=True) for i in indices])
            if spec.top_k > 1:
                weights_LTK, order_LTK = weights_LTK.sort(dim=-1, descending=True, stable=True)
                ids_LTK = ids_LTK.gather(-1, order_LTK)
            narrow = ids_LTK.to(torch.uint8 if spec.itemsize == 1 else torch.int16)
            columns_TS = narrow.transpose(0, 1).reshape(narrow.shape[1], -1)
            id_columns.append(columns_TS.view(torch.uint8))
            if self._keep_weights:
                half = weights_LTK.to(torch.float16).transpose(0, 1)
                weight_columns.append(half.reshape(half.shape[0], -1))
        packed_weights = torch.cat(weight_columns, dim=1) if self._keep_weights else None
        return torch.cat(id_columns, dim=1), packed_weights


def _to_host(tensor: torch.Tensor | None) -> torch.Tensor | None:
    if tensor is None or not tensor.is_cuda:
        return tensor
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)
