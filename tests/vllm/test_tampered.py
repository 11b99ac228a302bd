"""Engines that route past the probe: nothing of what they ran is recorded, and they are told on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from vllm.model_executor.layers.fused_moe.layer import MoERunner

from moe_probe.trace import open_trace
from tests.vllm.engines import generate
from tests.vllm.recorded import assert_as_reference, recorded_engine, sequences_of
from tests.vllm.reference import Reference
from tests.vllm.zoo import ZOO, prompts_of

NAME = "qwen3_moe"
LAYER = 2


def _router(llm: Any) -> Any:
    """The router of one layer of an engine in this process."""
    worker = llm.llm_engine.model_executor.driver_worker.worker
    (router,) = [
        module.router
        for module in worker.model_runner.get_model().modules()
        if isinstance(module, MoERunner) and module.layer_id == LAYER
    ]
    return router


def _go_past(router: Any) -> None:
    del router._compute_routing


def _add_a_slot(router: Any) -> None:
    bound = router._compute_routing

    def wider(hidden_states: torch.Tensor, logits: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        router.top_k += 1
        try:
            weights, ids = bound(hidden_states, logits, *args, **kwargs)
        finally:
            router.top_k -= 1
        return weights[:, :-1].contiguous(), ids[:, :-1].contiguous()

    router._compute_routing = wider


@pytest.mark.parametrize("tamper", [_go_past, _add_a_slot])
def test_tokens_of_a_layer_that_is_not_seen_are_in_no_row_and_no_count(
    tamper: Callable[[Any], None],
    checkpoint: Callable[[str], Path],
    reference: Callable[[str], Reference],
    tmp_path: Path,
) -> None:
    honest, hidden = prompts_of(ZOO[NAME], (20, 41)), prompts_of(ZOO[NAME], (33, 50), seed=4)
    with recorded_engine(checkpoint(NAME), tmp_path / "t") as llm:
        answers = generate(llm, honest, 4)
        tamper(_router(llm))
        generate(llm, hidden, 4)
    run = json.loads((tmp_path / "t" / "run.json").read_text())
    books, num_lost = run["completeness"], 33 + 50 + 2 * 3
    assert run["status"] == "incomplete"
    assert run["reason"].endswith(f"(layer: tokens): {{{LAYER}: {num_lost}}}")
    assert (books["lost_tokens"], books["shortfall"]) == (num_lost, num_lost)
    rows, num_recorded = sequences_of(tmp_path / "t"), 20 + 41 + 2 * 3
    assert books["recorded_tokens"] == num_recorded
    assert len(rows) == 2
    for row, prompt, answer in zip(rows, honest, answers, strict=True):
        assert_as_reference(row, [*prompt, *answer["tokens"][:-1]], reference(NAME))
    counts = open_trace(tmp_path / "t").counts.to_pandas()
    by_layer = counts.groupby("layer")["count"].sum().to_dict()
    assert by_layer == dict.fromkeys(ZOO[NAME].layers, num_recorded * ZOO[NAME].top_k)


def test_a_model_of_which_a_layer_is_not_found_is_refused_and_runs(
    checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "moe_probe.hooks.vllm.binding.expected_moe_layers", lambda config: [0, 1, 2, 3]
    )
    prompts = prompts_of(ZOO[NAME], (20,))
    with recorded_engine(checkpoint(NAME), tmp_path / "t") as llm:
        (answer,) = generate(llm, prompts, 4)
    assert len(answer["tokens"]) == 4
    run = json.loads((tmp_path / "t" / "run.json").read_text())
    assert run["status"] == "refused"
    assert "experts in layers [1] too, but routers were found in [0, 2, 3] only" in run["reason"]
    assert open_trace(tmp_path / "t").sequences.num_rows == 0
