"""vLLM's own routers, wrapped: what they return is what the buffers hold, or it is refused.

Shape suffixes: T tokens, K slots, N experts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.model_executor.layers.fused_moe.router.custom_routing_router import CustomRoutingRouter
from vllm.model_executor.layers.fused_moe.router.fused_topk_bias_router import FusedTopKBiasRouter
from vllm.model_executor.layers.fused_moe.router.grouped_topk_router import GroupedTopKRouter
from vllm.model_executor.layers.fused_moe.router.zero_expert_router import ZeroExpertRouter

from moe_probe.errors import CaptureError
from moe_probe.hooks.step_buffer import StepRows
from moe_probe.hooks.vllm.binding import bind, find_routers
from moe_probe.hooks.vllm.buffers import StepBuffers
from moe_probe.trace import Capture, RowLayout
from tests.hooks.vllm.models import NUM_EXPERTS, TOP_K, Model, Runner, config, cpu_router, logits

BIAS = torch.linspace(0.5, -0.5, NUM_EXPERTS)


def _second_best(
    hidden_states: torch.Tensor, gating_output: torch.Tensor, topk: int, renormalize: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    best = gating_output.topk(topk + 1, dim=-1)
    return best.values[:, 1:].sigmoid(), best.indices[:, 1:]


def _grouped() -> GroupedTopKRouter:
    with set_current_vllm_config(VllmConfig()):
        router = GroupedTopKRouter(
            TOP_K, NUM_EXPERTS, 4, 2, scoring_func="sigmoid", e_score_correction_bias=BIAS
        )
    return router


ROUTERS: dict[str, Callable[[], Any]] = {
    "softmax": cpu_router,
    "grouped": lambda: cpu_router(
        use_grouped_topk=True, num_expert_group=4, topk_group=2, scoring_func="sigmoid"
    ),
    "biased": lambda: cpu_router(
        use_grouped_topk=True,
        num_expert_group=1,
        topk_group=1,
        scoring_func="sigmoid",
        e_score_correction_bias=BIAS,
        routed_scaling_factor=2.5,
    ),
    "custom": lambda: CustomRoutingRouter(TOP_K, NUM_EXPERTS, _second_best),
    "GroupedTopKRouter": _grouped,
}


def probe(*runners: Runner, capture: Capture = Capture.WEIGHTS) -> StepBuffers:
    """Bind to a model of these layers, as the worker does."""
    sites = find_routers(Model(*runners), config(len(runners)), capture)
    buffers = StepBuffers(
        [site.spec for site in sites],
        [site.scale for site in sites],
        max_tokens=32,
        device=torch.device("cpu"),
        keep_weights=capture is Capture.WEIGHTS,
        sigmoid_layers=[index for index, site in enumerate(sites) if site.is_sigmoid],
    )
    bind(sites, buffers)
    return buffers


def step(buffers: StepBuffers, num_tokens: int) -> Any:
    position_T = torch.arange(num_tokens)
    return StepRows(buffers.rows(num_tokens, position_T, position_T.int())).wait()


def assert_holds(
    buffers: StepBuffers, index: int, weights: torch.Tensor, ids: torch.Tensor
) -> None:
    """Assert that a layer's rows are these slots, heaviest first."""
    rows, layout = step(buffers, len(ids)), RowLayout(tuple(buffers.layers))
    assert not rows.is_silent_L[index]
    weights, order = weights.float().sort(dim=-1, descending=True, stable=True)
    found_TK = layout.layer_ids(rows.ids_TB, index)
    np.testing.assert_array_equal(found_TK, ids.gather(-1, order).numpy())
    start, stop = layout.slot_offsets[index : index + 2]
    expected = weights.to(torch.float16).numpy()
    np.testing.assert_array_equal(rows.weights_TS[:, start:stop], expected)


@pytest.mark.parametrize("name", ROUTERS)
def test_a_router_returns_what_it_did_and_the_buffers_hold_it(name: str) -> None:
    runners = [Runner(layer, ROUTERS[name]()) for layer in (0, 1)]
    seen: list[torch.Tensor] = []
    # As vLLM's own recording of experts does; it must go on beside ours.
    runners[1].router.set_capture_fn(seen.append)
    plain = Runner(0, ROUTERS[name]())
    buffers = probe(*runners)
    buffers.clear(9)
    for index, runner in enumerate(runners):
        with torch._dynamo.config.patch(disable=True):
            expected_weights, expected_ids = plain.route(logits(9, index))
            weights, ids = runner.route(logits(9, index))
        assert torch.equal(weights, expected_weights)
        assert torch.equal(ids, expected_ids)
        assert_holds(buffers, index, weights, ids)
    assert torch.equal(torch.cat(seen), ids)


def test_sites_say_what_the_layers_are() -> None:
    runners = [Runner(3, cpu_router()), Runner(4, cpu_router(), scale=2.5, is_monolithic=True)]
    sites = find_routers(
        Model(*runners), config(5, first_k_dense_replace=3, n_group=4), Capture.IDS
    )
    assert [(site.spec.layer, site.scale, site.is_shadow) for site in sites] == [
        (3, 1.0, False),
        (4, 2.5, True),
    ]
    for site in sites:
        spec = site.spec
        assert (spec.num_experts, spec.top_k, spec.scalars) == (NUM_EXPERTS, TOP_K, False)
        assert (spec.facts["router"], spec.facts["num_groups"]) == ("CPURouter", 4)
    assert "source" not in sites[0].spec.facts
    assert "beside a kernel" in sites[1].spec.facts["source"]


def test_what_the_runner_multiplies_by_belongs_to_the_weights() -> None:
    runners = [Runner(0, cpu_router(), scale=2.5), Runner(1, cpu_router())]
    buffers = probe(*runners)
    for index, scale in enumerate((2.5, 1.0)):
        weights, ids = runners[index].route(logits(5))
        assert_holds(buffers, index, weights * scale, ids)


def test_scalars_are_of_the_logits_and_of_how_they_are_scored() -> None:
    runners = [Runner(0, ROUTERS["biased"]()), Runner(1, cpu_router())]
    buffers = probe(*runners)
    for runner in runners:
        runner.route(logits(5))
    rows = step(buffers, 5)
    logits_TN = logits(5).double()
    scores_TN = logits_TN.sigmoid()
    shares = [scores_TN / scores_TN.sum(-1, keepdim=True), logits_TN.softmax(-1)]
    for index, share_TN in enumerate(shares):
        entropy_T = -(share_TN * share_TN.log()).sum(-1)
        found_TR = rows.scalars_TR[:, 3 * index : 3 * index + 3]
        np.testing.assert_allclose(found_TR[:, 0], logits_TN.logsumexp(-1), rtol=1e-3)
        np.testing.assert_allclose(found_TR[:, 1], entropy_T, rtol=1e-3)


def test_slots_of_fused_shared_experts_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def routed(hidden_states: torch.Tensor, gating_output: torch.Tensor, **_: Any) -> Any:
        best = gating_output.softmax(-1).topk(TOP_K, dim=-1)
        return best.values, best.indices.int()

    module = "vllm.model_executor.layers.fused_moe.router.fused_topk_bias_router"
    monkeypatch.setattr(f"{module}.fused_topk_bias", routed)
    router = FusedTopKBiasRouter(TOP_K, NUM_EXPERTS, BIAS, num_fused_shared_experts=2)
    runner = Runner(0, router)
    buffers = probe(runner)
    weights, ids = runner.route(logits(6))
    assert ids.shape == (6, TOP_K + 2)
    assert_holds(buffers, 0, weights[:, :TOP_K], ids[:, :TOP_K])


@pytest.mark.parametrize("change", [-1, 1])
def test_a_decision_of_another_width_is_not_taken_for_one(change: int) -> None:
    runners = [Runner(0, cpu_router()), Runner(1, cpu_router())]
    buffers = probe(*runners)
    runners[1].router.top_k = TOP_K + change
    buffers.clear(6)
    for runner in runners:
        runner.route(logits(6))
    assert step(buffers, 6).is_silent_L.tolist() == [False, True]


def test_a_kernel_that_routes_inside_gets_its_call_and_the_router_is_asked_beside() -> None:
    runner = Runner(0, cpu_router(), is_monolithic=True)
    buffers = probe(runner)
    buffers.clear(6)
    logits_TN = logits(6)
    assert runner.route(logits_TN) == "output of the kernel"
    (arguments,) = runner.kernel_calls
    assert arguments["router_logits"] is logits_TN
    assert arguments["x"].shape == (6, 8)
    assert arguments["input_ids"] is None
    assert_holds(buffers, 0, *cpu_router()._compute_routing(torch.zeros(6, 8), logits_TN, None))


class _OwnRouter:
    """A router outside of vLLM's hierarchy."""


def _zero_experts() -> ZeroExpertRouter:
    return ZeroExpertRouter(TOP_K, NUM_EXPERTS + 2, BIAS, NUM_EXPERTS, "identity")


@pytest.mark.parametrize(
    ("model", "changes", "message"),
    [
        (Model(), {"num_experts": 0}, "Model is a dense model: it has no routers to record"),
        (
            Model(),
            {"model_type": "minicpm", "decoder_sparse_step": None},
            "Model routes by code of its own, which cannot be read",
        ),
        (
            Model(Runner(0, cpu_router())),
            {},
            r"experts in layers \[1\] too, .* found in \[0\] only",
        ),
        (
            Model(Runner(0, cpu_router()), Runner(0, cpu_router())),
            {},
            r"layers \[0, 0\] have more than one router each",
        ),
        (Model(Runner(0, _OwnRouter())), {}, "layers.0 routes by _OwnRouter, whose decision"),
        (Model(Runner(0, _zero_experts())), {}, "ZeroExpertRouter hides behind expert 0"),
    ],
    ids=["dense", "own code", "missing", "twice", "own router", "zero experts"],
)
def test_what_cannot_be_read_exactly_is_refused(
    model: Model, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(CaptureError, match=message) as caught:
        find_routers(model, config(2, **changes), Capture.IDS)
    if changes.get("num_experts") != 0:
        assert str(caught.value).endswith("Record it with --backend hf, or run another model.")


def test_a_pipeline_stage_needs_its_own_layers_only(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model(Runner(2, cpu_router()), Runner(3, cpu_router()))
    monkeypatch.setattr(model.model, "start_layer", 2, raising=False)
    monkeypatch.setattr(model.model, "end_layer", 4, raising=False)
    sites = find_routers(model, config(8), Capture.IDS)
    assert [site.spec.layer for site in sites] == [2, 3]
    monkeypatch.setattr(model.model, "end_layer", 5)
    with pytest.raises(CaptureError, match=r"layers \[4\] too"):
        find_routers(model, config(8), Capture.IDS)
