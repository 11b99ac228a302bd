"""What one forward pass of a model decided, gathered on the device and copied to the host once.

Engine-neutral: an engine's hooks call `capture` per layer and `finish` per forward pass.

Shape suffixes: T tokens, L MoE layers, K slots, B bytes of a token's ids, S slots of all layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

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
        self._events: list[torch.cuda.Event] = []
        # A tensor's device need not be the current one, whose stream an event takes by default.
        for tensor in (ids_TB, token_id_T):
            if tensor is not None and tensor.is_cuda:
                self._events.append(torch.cuda.current_stream(tensor.device).record_event())

    def wait(self) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
        """Return ids uint8 [T, B], weights float16 [T, S], token ids [T], once they are here."""
        for event in self._events:
            event.synchronize()
        ids_TB, weights_TS, token_id_T = self._tensors
        assert ids_TB is not None
        return (
            ids_TB.numpy(),
            None if weights_TS is None else weights_TS.numpy(),
            None if token_id_T is None else token_id_T.numpy(),
        )


class _Run(NamedTuple):
    """Neighbouring layers with rows of one shape; nearly every model is a single run."""

    start: int
    stop: int
    top_k: int
    itemsize: int


class StepBuffer:
    """Holds references to each layer's decision until the forward pass is over.

    Args:
        layers: The MoE layers, in the order the model runs them.
        keep_weights: Whether gate weights are wanted too.
    """

    def __init__(self, layers: Sequence[LayerSpec], *, keep_weights: bool) -> None:
        self.layout = RowLayout(tuple(layers))
        self._runs = _runs_of(layers)
        self._keep_weights = keep_weights
        self._ids: list[torch.Tensor | None] = [None] * len(layers)
        self._weights: list[torch.Tensor | None] = [None] * len(layers)
        self.captured_tokens = 0
        """Tokens captured so far, the same in every layer or `finish` would have refused."""

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
        ids, weights = self._take(num_tokens)
        self.captured_tokens += num_tokens
        # A copy, since the caller may reuse its tensor before the rows are read.
        tokens = None if token_ids is None else token_ids.reshape(-1).clone()
        if not ids:
            return StepRows(torch.empty((num_tokens, 0), dtype=torch.uint8), None, tokens)
        packed_ids, packed_weights = self._pack(ids, weights)
        return StepRows(packed_ids, packed_weights, tokens)

    def _take(self, num_tokens: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Hand over every layer's ids and weights as [T, K]; refuse an incomplete forward pass."""
        layers = self.layout.layers
        silent = [s.layer for s, ids in zip(layers, self._ids, strict=True) if ids is None]
        ids = [_rows(tensor) for tensor in self._ids if tensor is not None]
        weights = [_rows(tensor) for tensor in self._weights if tensor is not None]
        self.discard()
        if silent:
            raise CaptureError(
                f"Routing of layers {silent} was not seen in a forward pass of {num_tokens} "
                "tokens: their experts were called some other way. Load the model without fused "
                "MoE kernels (for example experts_implementation=eager)."
            )
        for spec, ids_TK, weights_TK in zip(layers, ids, weights, strict=True):
            expected = (num_tokens, spec.top_k)
            if ids_TK.shape != expected or weights_TK.shape != expected:
                raise CaptureError(
                    f"Layer {spec.layer} routed {tuple(ids_TK.shape)} (tokens, slots) where "
                    f"{expected} were expected, so its rows cannot be told apart. Run the model "
                    "on plain padded batches, without packing or skipping tokens."
                )
        return ids, weights

    @torch.no_grad()
    def _pack(
        self, ids: list[torch.Tensor], weights: list[torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        # Devices differ where a model is spread over several; rows are gathered on the last one.
        device = ids[-1].device
        ids = [t if t.device == device else t.to(device, non_blocking=True) for t in ids]
        weights = [t if t.device == device else t.to(device, non_blocking=True) for t in weights]
        id_columns: list[torch.Tensor] = []
        weight_columns: list[torch.Tensor] = []
        for start, stop, top_k, itemsize in self._runs:
            ids_TLK = torch.stack(ids[start:stop], dim=1)
            weights_TLK = torch.stack(weights[start:stop], dim=1)
            if top_k > 1:
                weights_TLK, order_TLK = weights_TLK.sort(dim=-1, descending=True, stable=True)
                ids_TLK = ids_TLK.gather(-1, order_TLK)
            # Only its bytes matter, and int16 converts on every device where uint16 may not.
            narrow = ids_TLK.to(torch.uint8 if itemsize == 1 else torch.int16).flatten(1)
            id_columns.append(narrow.view(torch.uint8))
            if self._keep_weights:
                weight_columns.append(weights_TLK.to(torch.float16).flatten(1))
        return _join(id_columns), _join(weight_columns) if self._keep_weights else None


def _runs_of(layers: Sequence[LayerSpec]) -> list[_Run]:
    runs = []
    shapes = [(spec.top_k, spec.itemsize) for spec in layers]
    for (top_k, itemsize), group in groupby(range(len(layers)), shapes.__getitem__):
        indices = list(group)
        runs.append(_Run(indices[0], indices[-1] + 1, top_k, itemsize))
    return runs


def _rows(tensor: torch.Tensor) -> torch.Tensor:
    # Some experts take ids as [batch, tokens, slots].
    return tensor if tensor.dim() == 2 else tensor.reshape(-1, tensor.shape[-1])


def _join(columns: list[torch.Tensor]) -> torch.Tensor:
    return columns[0] if len(columns) == 1 else torch.cat(columns, dim=1)


def _to_host(tensor: torch.Tensor | None) -> torch.Tensor | None:
    if tensor is None or not tensor.is_cuda:
        return tensor
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)
