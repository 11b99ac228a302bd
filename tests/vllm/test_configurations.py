"""However the engine runs its requests, every token's row is recorded once, and is the reference.

Engines in this process; those that need more than one are in test_processes.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.vllm.engines import engine, generate
from tests.vllm.recorded import (
    assert_complete,
    call,
    recorded_engine,
    scheduled,
    sequences_of,
    watched,
)
from tests.vllm.reference import Reference
from tests.vllm.zoo import ZOO, prompts_of

QWEN = ZOO["qwen3_moe"]


def test_chunked_prefill(qwen: Path, qwen_reference: Reference, tmp_path: Path) -> None:
    prompts = prompts_of(QWEN, (20, 41, 100, 7))
    options: dict[str, Any] = {"max_num_batched_tokens": 32}
    with recorded_engine(qwen, tmp_path / "t", **options) as llm, watched(llm) as steps:
        answers = generate(llm, prompts, 8)
    books = assert_complete(
        tmp_path / "t", prompts, answers, qwen_reference, steps=scheduled(steps)
    )
    assert books["superseded_tokens"] == 0
    assert max(step.total_num_scheduled_tokens for step in steps) == 32
    # The prompt of 100 tokens alone takes four.
    assert len(steps) >= 4 + 7


def test_prefix_caching(qwen: Path, qwen_reference: Reference, tmp_path: Path) -> None:
    prompts = prompts_of(QWEN, (20, 64, 100))
    options: dict[str, Any] = {"enable_prefix_caching": True, "block_size": 32}
    with recorded_engine(qwen, tmp_path / "t", **options) as llm, watched(llm) as steps:
        answers = generate(llm, prompts, 6)
        answers += generate(llm, prompts, 6)
        # Scores of a prompt need all of it to be run.
        answers += generate(llm, prompts, 6, prompt_logprobs=0)
    assert [answer["cached"] for answer in answers] == [0, 0, 0, 0, 32, 96, 0, 0, 0]
    assert_complete(tmp_path / "t", prompts * 3, answers, qwen_reference, steps=scheduled(steps))


def test_without_prefix_caching(qwen: Path, qwen_reference: Reference, tmp_path: Path) -> None:
    prompts = prompts_of(QWEN, (100, 64))
    options: dict[str, Any] = {"enable_prefix_caching": False, "block_size": 32}
    with recorded_engine(qwen, tmp_path / "t", **options) as llm, watched(llm) as steps:
        answers = generate(llm, prompts, 6)
        answers += generate(llm, prompts, 6)
        # The scheduler here has no further step in which to say that these ended.
        assert call(llm, "flush")["open_requests"] == 0
        assert len(sequences_of(tmp_path / "t")) == 4
    assert [answer["cached"] for answer in answers] == [0, 0, 0, 0]
    assert_complete(tmp_path / "t", prompts * 2, answers, qwen_reference, steps=scheduled(steps))


@pytest.mark.parametrize("caches", [False, True])
def test_preemption(caches: bool, qwen: Path, qwen_reference: Reference, tmp_path: Path) -> None:
    prompts = prompts_of(QWEN, (20, 41, 60, 35, 70, 50))
    options: dict[str, Any] = {
        "enable_prefix_caching": caches,
        "block_size": 32,
        "num_gpu_blocks_override": 14,
        "max_model_len": 384,
    }
    with recorded_engine(qwen, tmp_path / "t", **options) as llm, watched(llm) as steps:
        answers = generate(llm, prompts, 80)
    assert any(step.preempted_req_ids for step in steps)
    books = assert_complete(
        tmp_path / "t", prompts, answers, qwen_reference, steps=scheduled(steps)
    )
    assert books["superseded_tokens"] > 0


def test_outputs_are_the_same_with_the_probe(qwen: Path, tmp_path: Path) -> None:
    prompts = prompts_of(QWEN)
    with engine(qwen) as llm:
        expected = generate(llm, prompts, 12, prompt_logprobs=0)
    for capture in ("ids", "weights"):
        with recorded_engine(qwen, tmp_path / capture, capture=capture) as llm:
            assert generate(llm, prompts, 12, prompt_logprobs=0) == expected
        assert len(sequences_of(tmp_path / capture)) == len(prompts)
