"""What one forward pass of a model decided, gathered on the device and copied to the host once.

Engine-neutral: an engine's hooks call `capture` per layer and `finish` per forward pass.

Shape suffixes: T tokens, L MoE layers, K slots, B bytes of a token's ids, S slots of all layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import numpy as np
import torch

from moe_probe.errors import CaptureError
from moe_probe.hooks.packing import PackedRows, pack, runs_of
from moe_probe.trace import LayerSpec, RowLayout


class HostRows(NamedTuple):
    """Rows of one forward pass on the host, field by field as in `PackedRows`."""

    ids_TB: np.ndarray
    weights_TS: np.ndarray | None
    scalars_TR: np.ndarray | None
    token_id_T: np.ndarray | None
    position_T: np.ndarray | None
    is_silent_L: np.ndarray | None


class StepRows:
    """Packed rows of one forward pass, on their way to the host.

    Args:
        rows: The rows, on any devices.
        stream: Where to copy; the device's current stream if None, which the model's next kernels
            then wait for.
    """

    def __init__(self, rows: PackedRows, *, stream: torch.cuda.Stream | None = None) -> None:
        self.num_tokens = len(rows.ids_TB)
        self.num_bytes = sum(t.nbytes for t in rows if t is not None)
        self._events: list[torch.cuda.Event] = []
        with _copying_on(stream):
            self._rows = PackedRows._make(map(_to_host, rows))
            # A tensor's device need not be the current one, whose stream an event takes by default.
            for device in {t.device for t in rows if t is not None and t.is_cuda}:
                self._events.append(torch.cuda.current_stream(device).record_event())
        if stream is not None:
            for tensor in rows:
                if tensor is not None:
                    # Or its memory would be given to the model's stream before it is copied.
                    tensor.record_stream(stream)

    def wait(self) -> HostRows:
        """Return the rows once they are here."""
        for event in self._events:
            event.synchronize()
        return HostRows._make(None if t is None else t.numpy() for t in self._rows)


class StepBuffer:
    """Holds references to each layer's decision until the forward pass is over.

    Args:
        layers: The MoE layers, in the order the model runs them.
        keep_weights: Whether gate weights are wanted too.
    """

    def __init__(self, layers: Sequence[LayerSpec], *, keep_weights: bool) -> None:
        self.layout = RowLayout(tuple(layers))
        self._runs = runs_of(layers)
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
            nothing = torch.empty((num_tokens, 0), dtype=torch.uint8)
            return StepRows(PackedRows(nothing, None, token_id_T=tokens))
        return StepRows(PackedRows(*self._pack(ids, weights), token_id_T=tokens))

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
        return pack(
            self._runs,
            [torch.stack(ids[run.start : run.stop], dim=1) for run in self._runs],
            [torch.stack(weights[run.start : run.stop], dim=1) for run in self._runs],
            keep_weights=self._keep_weights,
        )


def _rows(tensor: torch.Tensor) -> torch.Tensor:
    # Some experts take ids as [batch, tokens, slots].
    return tensor if tensor.dim() == 2 else tensor.reshape(-1, tensor.shape[-1])


def _copying_on(stream: torch.cuda.Stream | None) -> AbstractContextManager[object]:
    if stream is None:
        return nullcontext()
    stream.wait_stream(torch.cuda.current_stream(stream.device))
    return torch.cuda.stream(stream)


def _to_host(tensor: torch.Tensor | None) -> torch.Tensor | None:
    if tensor is None or not tensor.is_cuda:
        return tensor
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)
