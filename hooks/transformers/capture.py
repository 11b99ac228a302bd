"""Capture every routing decision of a transformers model while its hooks are attached."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

import torch
from torch import nn

from moe_probe.errors import CaptureError
from moe_probe.hooks.step_buffer import StepBuffer, StepRows
from moe_probe.hooks.transformers.detector import Site, find_sites
from moe_probe.hooks.transformers.probing import hooked, is_compiled, probe_layers
from moe_probe.hooks.transformers.refusals import (
    refuse_missing_layers,
    refuse_partial_view,
    refuse_without_sites,
)


class TransformersCapture:
    """Attach to a model; detach when the block ends, leaving the model as it was.

    Every completed forward pass of the model gives one `StepRows` to `on_step`. Construction finds
    the MoE layers and runs two tokens through the model to prove that each one can be read.

    Args:
        model: The model, loaded, quantised, dispatched and perhaps compiled, in eval mode.
        keep_weights: Whether to capture gate weights beside the ids.
        baseline: Expect no routers; steps then only say which tokens were fed.

    Raises:
        CaptureError: the model has no routers, or a layer cannot be read completely.
    """

    def __init__(
        self, model: nn.Module, *, keep_weights: bool = False, baseline: bool = False
    ) -> None:
        # torch.compile(model) wraps the model, but its `generate` runs what it wraps.
        self.model: nn.Module = getattr(model, "_orig_mod", model)
        self.on_step: Callable[[StepRows], None] | None = None
        self._attached = ExitStack()
        self._is_compiled = is_compiled(model)
        refuse_partial_view(self.model)
        self._sites = [] if baseline else find_sites(self.model)
        if not self._sites and not baseline:
            refuse_without_sites(self.model)
        self.layers = probe_layers(self.model, self._sites) if self._sites else []
        if self._sites:
            refuse_missing_layers(self.layers, getattr(self.model, "config", None))
        self._buffer = StepBuffer(self.layers, keep_weights=keep_weights)

    @property
    def captured_tokens(self) -> dict[int, int]:
        """Tokens captured so far, by layer."""
        return {spec.layer: self._buffer.captured_tokens for spec in self.layers}

    def __enter__(self) -> Self:
        begin, end = self._begin, self._end
        with ExitStack() as stack:
            if self._is_compiled:
                # Graphs made before the hooks were there would never call them.
                torch._dynamo.reset()
                # What runs between forward passes is not worth graphs of its own.
                begin = torch.compiler.disable(begin)  # type: ignore[no-untyped-call]
                end = torch.compiler.disable(end)  # type: ignore[no-untyped-call]
            for index, site in enumerate(self._sites):
                stack.enter_context(hooked(site, self._hook(index, site)))
            before = self.model.register_forward_pre_hook(begin, with_kwargs=True)
            stack.callback(before.remove)
            after = self.model.register_forward_hook(end, with_kwargs=True)
            stack.callback(after.remove)
            stack.callback(self._buffer.discard)
            self._attached = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._attached.close()

    def _hook(self, index: int, site: Site) -> Callable[..., None]:
        def capture(module: nn.Module, args: Any, kwargs: Any, output: Any = None) -> None:
            ids_TK, weights_TK = site.read(module, args, kwargs, output)
            self._buffer.capture(index, ids_TK, weights_TK)

        return capture

    def _begin(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        # What a forward pass that raised has left.
        self._buffer.discard()

    def _end(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        tokens = kwargs.get("input_ids", args[0] if args else None)
        fed = tokens if tokens is not None else kwargs.get("inputs_embeds")
        if fed is None:
            raise CaptureError(
                "A forward pass was given neither input_ids nor inputs_embeds, so its tokens "
                "cannot be counted. Feed the model one of them."
            )
        step = self._buffer.finish(fed.shape[0] * fed.shape[1], tokens)
        if self.on_step is not None:
            self.on_step(step)
