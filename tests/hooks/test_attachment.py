"""Attaching and detaching: what is left behind, what is synchronised, what compilation does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from moe_probe.hooks.step_buffer import StepRows
from moe_probe.hooks.transformers import TransformersCapture
from tests.hooks.recorded import assert_same_ids, record, unpack
from tests.hooks.zoo import build, build_anew, padded_batch


def _hooks(model: nn.Module) -> list[str]:
    """Name every hook found anywhere in a model."""
    return [
        f"{path}.{name}"
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if "hooks" in name and isinstance(value, dict) and value
    ]


def test_no_hook_is_left_behind() -> None:
    model, batch = build_anew("deepseek_v3"), padded_batch("left")
    forwards = [module.forward for module in model.modules()]
    with TransformersCapture(model) as capture:
        assert len(_hooks(model)) >= len(capture.layers)
        with torch.no_grad():
            model(**batch)
    assert _hooks(model) == []
    assert [module.forward for module in model.modules()] == forwards


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failed_forward_leaves_no_hook_and_no_half_step(error: type[BaseException]) -> None:
    model, batch = build_anew("mixtral"), padded_batch("left")
    expected = record(model, batch)[0]

    def fail(module: nn.Module, args: Any) -> None:
        raise error("stop")

    steps: list[Any] = []
    capture = TransformersCapture(model)
    capture.on_step = steps.append
    with torch.no_grad():
        with capture:
            handle = model.model.layers[2].register_forward_pre_hook(fail)
            with pytest.raises(error):
                model(**batch)
            handle.remove()
            # Two layers were captured before the failure; the next forward starts clean.
            model(**batch)
            assert len(steps) == 1
        model.model.layers[2].register_forward_pre_hook(fail)
        with pytest.raises(error), capture:
            model(**batch)
    assert len(steps) == 1
    assert _hooks(model) == ["model.layers.2._forward_pre_hooks"]
    model.model.layers[2]._forward_pre_hooks.clear()
    assert_same_ids(record(model, batch)[0], expected)


def test_construction_that_fails_leaves_no_hook() -> None:
    model = build_anew("mixtral")
    model.model.layers[1].register_forward_pre_hook(_interrupt)
    with pytest.raises(KeyboardInterrupt):
        TransformersCapture(model)
    assert _hooks(model) == ["model.layers.1._forward_pre_hooks"]


def _interrupt(module: nn.Module, args: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("name", ["deepseek_v3", "llama4_text"])
def test_a_forward_moves_nothing_to_the_host(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Eager experts read which of them were hit; this implementation reads nothing back.
    model, batch = build_anew(name), padded_batch("left")
    model.set_experts_implementation("batched_mm")
    used: list[str] = []

    def noting(method: str, run: Callable[..., Any]) -> Callable[..., Any]:
        def call(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            used.append(method)
            return run(tensor, *args, **kwargs)

        return call

    def watch(run: Callable[[], Any]) -> list[str]:
        used.clear()
        with monkeypatch.context() as patched, torch.no_grad():
            for method in ("cpu", "item", "tolist", "numpy", "__bool__", "__int__", "nonzero"):
                patched.setattr(torch.Tensor, method, noting(method, getattr(torch.Tensor, method)))
            run()
        return list(used)

    without = watch(lambda: model(**batch))
    with TransformersCapture(model, keep_weights=True) as capture:
        steps: list[Any] = []
        capture.on_step = steps.append
        assert watch(lambda: model(**batch)) == without
    assert len(steps) == 1
    assert watch(steps[0].wait).count("numpy") == 3


@pytest.fixture
def _fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("_fresh_dynamo")
@pytest.mark.parametrize(
    ("form", "ran_before"),
    [
        ("wrapped", False),
        ("wrapped", True),
        ("in place", True),
        ("forward only", True),
        ("one layer", True),
    ],
)
def test_compiled_models_are_captured(form: str, ran_before: bool) -> None:
    model = build_anew("qwen3_moe", num_hidden_layers=2, mlp_only_layers=[])
    batch = padded_batch("left")
    expected = record(model, batch, batch)
    compiled = _compile(model, form)
    with torch.no_grad():
        if ran_before:
            # The shapes of the probe and of the batch, so that neither is compiled anew later.
            compiled(input_ids=torch.ones((1, 2), dtype=torch.long))
            compiled(**batch)
        steps: list[StepRows] = []
        with TransformersCapture(compiled) as capture:
            capture.on_step = steps.append
            compiled(**batch)
            compiled(**batch)
        # The graphs were compiled with the hooks inside, and must not go on calling them.
        compiled(**batch)
    assert all(ids is None for ids in capture._buffer._ids)
    if not ran_before:
        # The model only: packing is not worth graphs of its own. Once with hooks, once without.
        assert counters["frames"]["total"] == 2
        assert not counters["graph_break"]
    assert [spec.facts["module"] for spec in capture.layers] == [
        "model.layers.0.mlp.experts",
        "model.layers.1.mlp.experts",
    ]
    for rows, theirs in zip(steps, expected, strict=True):
        assert_same_ids(unpack(rows, capture.layers), theirs)


def _compile(model: Any, form: str) -> Any:
    if form == "wrapped":
        return torch.compile(model, backend="aot_eager")
    if form == "in place":
        model.compile(backend="aot_eager")
    elif form == "forward only":
        model.forward = torch.compile(model.forward, backend="aot_eager")
    else:
        model.model.layers[1] = torch.compile(model.model.layers[1], backend="aot_eager")
    return model


def test_generate_of_a_compiled_model_is_captured() -> None:
    model, batch = build("qwen3_moe"), padded_batch("left")
    steps: list[Any] = []
    compiled: Any = torch.compile(model, backend="aot_eager")
    with TransformersCapture(compiled) as capture:
        capture.on_step = steps.append
        # `generate` belongs to the model inside the wrapper, which it runs uncompiled.
        model.generate(**batch, max_new_tokens=3, min_new_tokens=3, do_sample=False)
    assert [step.num_tokens for step in steps] == [33, 3, 3]


def test_offloaded_models_are_captured() -> None:
    accelerate = pytest.importorskip("accelerate")
    model, batch = build_anew("mixtral"), padded_batch("left")
    expected = record(model, batch)[0]
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    assert next(model.parameters()).is_meta
    assert_same_ids(record(model, batch)[0], expected)
