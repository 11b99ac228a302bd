"""Two pipeline stages, each with some of the layers, leave one trace of all of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from moe_probe.recording.stages import open_trace
from tests.vllm.engines import TWO_RANKS, call_in_new_process, settings, start_and_generate
from tests.vllm.recorded import assert_as_reference, sequences_of
from tests.vllm.reference import Reference
from tests.vllm.zoo import ZOO, prompts_of

QWEN = ZOO["qwen3_moe"]


def test_rows_of_both_stages_are_the_reference(
    checkpoint: Callable[[str], Path], reference: Callable[[str], Reference], tmp_path: Path
) -> None:
    prompts, root = prompts_of(QWEN), tmp_path / "t"
    # Stages of the CPU engine only work together in compiled models.
    arguments = settings(
        checkpoint(QWEN.name), pipeline_parallel_size=2, enforce_eager=False, max_num_seqs=4
    )
    variables = {
        "MOE_PROBE_TRACE": str(root),
        "MOE_PROBE_CAPTURE": "weights",
        "MOE_PROBE_TOKENS": "1",
    }
    answers = call_in_new_process(
        start_and_generate,
        arguments,
        prompts,
        6,
        environment={**TWO_RANKS, **variables},
        timeout=400,
    )
    # Nobody opened it yet.
    assert sorted(path.name for path in (root / "stages").iterdir()) == ["0", "1"]
    trace = open_trace(root)
    assert tuple(trace.layers) == QWEN.layers
    layers = {stage: table["layers"] for stage, table in trace.run["stages"].items()}
    assert layers == {"0": [0], "1": [2, 3]}
    rows = sorted(sequences_of(root), key=lambda row: int(row["request_id"]))
    assert [row["request_id"] for row in rows] == ["0", "1", "2"]
    num_run = 0
    for row, prompt, answer in zip(rows, prompts, answers, strict=True):
        tokens = [*prompt, *answer["tokens"][:-1]]
        assert_as_reference(row, tokens, reference(QWEN.name))
        # The prompt in one step, then a token in each; which step came first is the engine's.
        steps_T = row["passes"] - row["passes"][0]
        assert steps_T[: len(prompt)].tolist() == [0] * len(prompt)
        assert (np.diff(steps_T[len(prompt) - 1 :]) > 0).all()
        num_run += len(tokens)
    books = trace.run["completeness"]
    assert trace.run["status"] == "complete"
    assert (books["shortfall"], books["lost_tokens"], books["dropped_tokens"]) == (0, 0, 0)
    assert books["recorded_tokens"] == books["expected_tokens"] == num_run
    assert set(books["layers"]) == {str(layer) for layer in QWEN.layers}
    assert set(books["layers"].values()) == {books["computed_tokens"]}
