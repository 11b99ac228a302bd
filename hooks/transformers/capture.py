"""Capture every routing decision of a transformers model while its hooks are attached."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any, Self

import torch
from torch import nn

from moe_probe.errors import CaptureError
from moe_probe.hooks.step_buffer import StepBuffer, StepRows
from moe_probe.hooks.transformers.config_facts import (
    expected_moe_layers,
    layer_facts,
    num_experts,
)
from moe_probe.hooks.transformers.detector import Site, find_sites
from moe_probe.trace import LayerSpec


class TransformersCapture:
    """Attach to a model; detach when the block ends, leaving the model as it was.

    Every completed forward pass of the model gives one `StepRows` to `on_step`. Construction finds
    the MoE layers and runs two tokens through the model to prove that each one can be read.

    Args:
        model: The model, loaded, quantised and dispatched, in eval mode.
        keep_weights: Whether to capture gate weights beside the ids.
        baseline: Expect no routers; steps then only say which tokens were fed.

    Raises:
        CaptureError: the model has no routers, or a layer cannot be read completely.
    """

    def __init__(
        self, model: nn.Module, *, keep_weights: bool = False, baseline: bool = False
    ) -> None:
        self.model = model
        self.on_step: Callable[[StepRows], None] | None = None
        self._keep_weights = keep_weights
        self._attached = ExitStack()
        _refuse_rank_local_ids(model)
        self._sites = [] if baseline else find_sites(model)
        config = getattr(model, "config", None)
        if not self._sites and not baseline:
            raise CaptureError(_why_no_sites(model, num_experts(config) if config else 0))
        self.layers = self._probe_layers(config) if self._sites else []
        if self._sites:
            _compare_with_config(self.layers, config)
        self._buffer = StepBuffer(self.layers, keep_weights=keep_weights)

    @property
    def captured_tokens(self) -> dict[int, int]:
        """Tokens captured so far, by layer."""
        captured = self._buffer.captured_L.tolist()
        return {spec.layer: n for spec, n in zip(self.layers, captured, strict=True)}

    def __enter__(self) -> Self:
        if hasattr(self.model, "_orig_mod"):
            # Compiled graphs made before the hooks were there would never call them.
            torch._dynamo.reset()
        with ExitStack() as stack:
            for index, site in enumerate(self._sites):
                stack.enter_context(_hooked(site, self._hook(index, site)))
            before = self.model.register_forward_pre_hook(self._begin, with_kwargs=True)
            stack.callback(before.remove)
            # always_call: a forward pass that raised must not leave captures to the next one.
            after = self.model.register_forward_hook(self._end, with_kwargs=True, always_call=True)
            stack.callback(after.remove)
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
        self._buffer.discard()

    def _end(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if output is None:
            self._buffer.discard()
            return
        fed = kwargs.get("input_ids", args[0] if args else None)
        tokens: torch.Tensor | None = fed if isinstance(fed, torch.Tensor) else None
        shape = (tokens if tokens is not None else kwargs["inputs_embeds"]).shape
        step = self._buffer.finish(int(shape[0] * shape[1]), tokens)
        if self.on_step is not None:
            self.on_step(step)

    def _probe_layers(self, config: Any) -> list[LayerSpec]:
        """Run two tokens and read the shape of each layer's decision."""
        seen: dict[int, tuple[int, ...]] = {}

        def note(index: int, site: Site) -> Callable[..., None]:
            def hook(module: nn.Module, args: Any, kwargs: Any, output: Any = None) -> None:
                ids, weights = site.read(module, args, kwargs, output)
                if ids.is_floating_point() or ids.dtype is torch.bool or ids.shape != weights.shape:
                    raise CaptureError(
                        f"{type(module).__name__} at {site.path} was given {ids.dtype} "
                        f"{tuple(ids.shape)} as expert ids and {tuple(weights.shape)} as weights, "
                        "which is not a top-k decision."
                    )
                seen[index] = tuple(ids.reshape(-1, ids.shape[-1]).shape)

            return hook

        with ExitStack() as stack, torch.no_grad():
            for index, site in enumerate(self._sites):
                stack.enter_context(_hooked(site, note(index, site)))
            device = next(self.model.parameters()).device
            self.model(input_ids=torch.ones((1, 2), dtype=torch.long, device=device))
        silent = [site.path for index, site in enumerate(self._sites) if seen.get(index, (0,))[0] != 2]
        if silent:
            raise CaptureError(
                f"{len(silent)} of {len(self._sites)} MoE layers were not called with every token, "
                f"the first at {silent[0]}: the model runs its experts some other way. Load it "
                "without fused MoE kernels, on one pipeline stage."
            )
        facts = layer_facts(config) if config else {}
        return [
            LayerSpec(
                layer=site.layer,
                num_experts=_num_experts(site.module, config),
                top_k=seen[index][1],
                facts={**facts, "module": site.path},
            )
            for index, site in enumerate(self._sites)
        ]


@contextmanager
def _hooked(site: Site, hook: Callable[..., None]) -> Any:
    register = (
        site.module.register_forward_pre_hook if site.before else site.module.register_forward_hook
    )
    handle = register(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _num_experts(module: nn.Module, config: Any) -> int:
    # The module first: a configuration may count experts that only some layers have.
    value = getattr(module, "num_experts", None)
    return int(value) if value else num_experts(config)


def _why_no_sites(model: nn.Module, num_experts_in_config: int) -> str:
    name = type(model).__name__
    if num_experts_in_config > 1:
        return (
            f"{name} is configured with {num_experts_in_config} experts, but no module takes a "
            "top-k decision that can be read. Load it without fused MoE kernels, or add an "
            "adapter (docs/capture.md)."
        )
    return (
        f"{name} is a dense model: it has no routers to record. "
        "Use --baseline to record its scores only, for comparison."
    )


def _compare_with_config(layers: list[LayerSpec], config: Any) -> None:
    expected = expected_moe_layers(config) if config is not None else None
    found = [spec.layer for spec in layers]
    if expected is not None and sorted(found) != expected:
        raise CaptureError(
            f"The configuration says layers {expected} have experts, but {found} were found. "
            "Some layers would be missing from the trace."
        )


def _refuse_rank_local_ids(model: nn.Module) -> None:
    plan = getattr(model, "ep_plan", None) or {}
    if "ep_router" in map(str, plan.values()) and getattr(model, "_ep_size", 1) > 1:
        raise CaptureError(
            "This expert-parallel plan renumbers expert ids per rank (ep_router), so ids would be "
            "wrong. Load the model with tensor parallelism or on one device."
        )
