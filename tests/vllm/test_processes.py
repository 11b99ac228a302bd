"""Engines that need processes of their own: several workers, a compiler, the second model runner.

What they record, and that nothing of the probe is in an engine that was not asked to record.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.vllm.engines import (
    EAGER,
    ONE_PROCESS,
    SECOND_RUNNER,
    TWO_RANKS,
    call_in_new_process,
    generate,
    running,
    settings,
    start_and_generate,
)
from tests.vllm.recorded import assert_complete, scheduled, sequences_of, watched
from tests.vllm.reference import Reference
from tests.vllm.zoo import ZOO, prompts_of

QWEN = ZOO["qwen3_moe"]
PROMPTS = prompts_of(QWEN)


def asking_for(trace: Path) -> dict[str, str]:
    """The variables that make an engine record."""
    return {
        "MOE_PROBE_TRACE": str(trace),
        "MOE_PROBE_CAPTURE": "weights",
        "MOE_PROBE_TOKENS": "1",
    }


@pytest.mark.parametrize(
    ("arguments", "environment"),
    [({}, EAGER), ({"tensor_parallel_size": 2}, {**EAGER, **TWO_RANKS})],
    ids=["own process", "two tensor-parallel ranks"],
)
def test_workers_in_other_processes(
    arguments: dict[str, Any],
    environment: dict[str, str],
    qwen: Path,
    qwen_reference: Reference,
    tmp_path: Path,
) -> None:
    trace = tmp_path / "t"
    answers = call_in_new_process(
        start_and_generate,
        settings(qwen, **arguments),
        PROMPTS,
        8,
        environment={**environment, **asking_for(trace)},
    )
    assert_complete(trace, PROMPTS, answers, qwen_reference)
    run = json.loads((trace / "run.json").read_text())
    assert run["engine"]["tensor_parallel_size"] == arguments.get("tensor_parallel_size", 1)


def speculate(
    arguments: dict[str, Any], prompts: list[list[int]], num_tokens: int
) -> dict[str, Any]:
    with running(arguments) as llm, watched(llm) as steps:
        answers = generate(llm, prompts, num_tokens)
    return {"answers": answers, "steps": scheduled(steps)}


def test_speculation(qwen: Path, qwen_reference: Reference, tmp_path: Path) -> None:
    prompts = [prompt[:n] * 6 for prompt, n in zip(PROMPTS, (4, 6, 9), strict=True)]
    speculation = {
        "method": "ngram",
        "num_speculative_tokens": 3,
        "prompt_lookup_max": 3,
        "prompt_lookup_min": 1,
    }
    found = call_in_new_process(
        speculate,
        settings(qwen, speculative_config=speculation),
        prompts,
        37,
        environment={**EAGER, **ONE_PROCESS, **asking_for(tmp_path / "t")},
    )
    answers, steps = found["answers"], found["steps"]
    books = assert_complete(tmp_path / "t", prompts, answers, qwen_reference, steps=steps)
    assert len(steps) < 37, "no draft was accepted"
    # A request can run beyond its end once, by three accepted drafts.
    assert books["superseded_tokens"] > 3 * len(prompts), "no draft was rejected"
    # The last step did, and no later one could have said so.
    assert all(start + n > len(prompts[index]) + 36 for index, start, n in steps[-1])


def compile_without_and_with(
    arguments: dict[str, Any], prompts: list[list[int]], trace: str
) -> dict[str, Any]:
    folder = Path(os.environ["VLLM_CACHE_ROOT"]) / "torch_compile_cache" / "torch_aot_compile"
    compiled = []
    for variable in ("", trace):
        os.environ["MOE_PROBE_TRACE"] = variable
        with running(arguments) as llm:
            answers = generate(llm, prompts, 8)
        compiled.append(sorted(path.parent.parent.name for path in folder.glob("*/*/model")))
    return {"answers": answers, "compiled": compiled}


def test_compiled(qwen: Path, qwen_reference: Reference, tmp_path: Path) -> None:
    found = call_in_new_process(
        compile_without_and_with,
        settings(qwen, enforce_eager=False),
        PROMPTS,
        str(tmp_path / "t"),
        environment={
            **ONE_PROCESS,
            **asking_for(tmp_path / "t"),
            "VLLM_CACHE_ROOT": str(tmp_path / "cache"),
        },
    )
    # In a compiled graph, eight steps are right only if its operators ran in each of them.
    assert_complete(tmp_path / "t", PROMPTS, found["answers"], qwen_reference)
    before, after = found["compiled"]
    assert len(before) == 1
    assert len(after) == 2, "a graph without the probe was taken for one with it"


def generate_twice(arguments: dict[str, Any], prompts: list[list[int]]) -> dict[str, Any]:
    from vllm import SamplingParams

    sampling = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True)
    outputs = []
    with running(arguments) as llm, watched(llm) as steps:
        for _ in range(2):
            asked = [{"prompt_token_ids": prompt} for prompt in prompts]
            outputs += llm.generate(asked, sampling, use_tqdm=False)
    return {
        "answers": [
            {"tokens": list(output.outputs[0].token_ids), "cached": output.num_cached_tokens}
            for output in outputs
        ],
        "experts": [output.outputs[0].routed_experts.tolist() for output in outputs],
        "steps": scheduled(steps),
        "num_preempted": sum(len(step.preempted_req_ids or ()) for step in steps),
    }


def test_second_runner(qwen: Path, qwen_reference: Reference, tmp_path: Path) -> None:
    prompts = prompts_of(QWEN, (20, 60, 90))
    found = call_in_new_process(
        generate_twice,
        settings(
            qwen,
            enable_return_routed_experts=True,
            enable_prefix_caching=True,
            block_size=32,
            num_gpu_blocks_override=9,
            max_num_batched_tokens=64,
        ),
        prompts,
        environment={**EAGER, **SECOND_RUNNER, **ONE_PROCESS, **asking_for(tmp_path / "t")},
    )
    answers, steps = found["answers"], found["steps"]
    books = assert_complete(tmp_path / "t", prompts * 2, answers, qwen_reference, steps=steps)
    # It tells its workers of a request that was preempted as if it were new.
    assert found["num_preempted"] > 0
    assert books["superseded_tokens"] > 0
    assert any(answer["cached"] for answer in answers)
    rows = sorted(sequences_of(tmp_path / "t"), key=lambda row: int(row["request_id"]))
    for row, experts in zip(rows, found["experts"], strict=True):
        # vLLM tells what was cached too, and has an entry for the dense layer.
        own_TLK = np.asarray(experts)[row["cached_tokens"] :]
        assert own_TLK.shape[1] == 4
        for layer in QWEN.layers:
            np.testing.assert_array_equal(
                np.sort(row["ids"][layer], axis=1), np.sort(own_TLK[:, layer], axis=1)
            )


def run_unasked(arguments: dict[str, Any], prompts: list[list[int]], trace: str) -> dict[str, Any]:
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.worker.worker_base import WorkerWrapperBase

    def attributes() -> list[dict[str, int]]:
        # Of each, what an attribute is, by its address: both classes stay alive.
        return [
            {name: id(value) for name, value in vars(owner).items()}
            for owner in (WorkerWrapperBase, Scheduler)
        ]

    found = []
    unpatched = attributes()
    # Not asked for at all; then asked for, but not among the plugins that are allowed.
    for variables in ({}, {"MOE_PROBE_TRACE": trace, "VLLM_PLUGINS": ""}):
        os.environ.update(variables)
        with running(arguments) as llm:
            answers = generate(llm, prompts, 8)
            threads = [thread.name for thread in threading.enumerate()]
        found.append(
            {
                "tokens": [answer["tokens"] for answer in answers],
                "is_unpatched": attributes() == unpatched,
                "threads": [name for name in threads if name.startswith("moe-probe")],
                # Of this module's own imports, the plugin's entry point is the only one there.
                "modules": [
                    name for name in sys.modules if name.startswith("moe_probe.hooks.vllm")
                ],
            }
        )
    return {"found": found, "has_flag": hasattr(WorkerWrapperBase, "moe_probe_is_installed")}


def test_nothing_of_the_probe_where_it_is_not_asked_for(
    qwen: Path, qwen_reference: Reference, tmp_path: Path
) -> None:
    answer = call_in_new_process(
        run_unasked,
        settings(qwen),
        PROMPTS,
        str(tmp_path / "t"),
        environment={**EAGER, **ONE_PROCESS},
    )
    assert not answer["has_flag"]
    for found in answer["found"]:
        assert found == {
            "tokens": [qwen_reference.greedy(prompt, 8) for prompt in PROMPTS],
            "is_unpatched": True,
            "threads": [],
            "modules": ["moe_probe.hooks.vllm"],
        }
    assert not (tmp_path / "t").exists()
