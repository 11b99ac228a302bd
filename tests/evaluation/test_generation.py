"""Generated and running text: the rows of real tokens, and nothing of padding or overrun."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from moe_probe.evaluation.engines.hf_generation import GenerationBatch
from moe_probe.evaluation.tasks import load_tasks
from moe_probe.hooks.transformers import TransformersCapture
from moe_probe.trace import Trace, open_trace
from tests.evaluation.record_helpers import (
    assert_passes_ran,
    passes_of,
    record,
    rows_of,
    stock_samples,
    tokens_of,
    watched_forwards,
)

TASKS = ["toy_generate", "toy_rolling"]
MODEL_ARGS: dict[str, Any] = {"max_length": 200}


Recorded = tuple[Trace, list[np.ndarray]]


@pytest.fixture(scope="module")
def recorded(
    byte_model: Path, toy_tasks: Path, tmp_path_factory: pytest.TempPathFactory
) -> Recorded:
    output = tmp_path_factory.mktemp("generated") / "trace"
    options: dict[str, Any] = {"include_path": toy_tasks, "model_args": MODEL_ARGS}
    with watched_forwards() as fed:
        record(byte_model, TASKS, output, capture="weights", **options)
    return open_trace(output), fed


@pytest.fixture(scope="module")
def trace(recorded: Recorded) -> Trace:
    return recorded[0]


@pytest.fixture(scope="module")
def stock(byte_model: Path, toy_tasks: Path) -> dict[str, Any]:
    items = load_tasks(TASKS, include_path=toy_tasks).load()
    return stock_samples(byte_model, items, model_args=MODEL_ARGS)


def test_responses_are_lm_evals(trace: Trace, stock: dict[str, Any]) -> None:
    expected = {s["doc_id"]: s["resps"][0][0] for s in stock["samples"]["toy_generate"]}
    rows = [r for r in trace.sequences.to_pylist() if r["task"] == "toy_generate"]
    assert {row["doc_id"]: row["response"] for row in rows} == expected
    perplexity = trace.run["results"]["toy_rolling"]["word_perplexity,none"]
    assert perplexity == stock["results"]["toy_rolling"]["word_perplexity,none"]


def test_generated_rows_equal_the_sequence_run_alone(trace: Trace, stock: dict[str, Any]) -> None:
    model, tokenizer = stock["lm"].model, stock["lm"].tokenizer
    token_ids, sequence_ids, positions = (
        np.concatenate([getattr(block, name) for block in trace.scan()])
        for name in ("token_id_T", "sequence_id_T", "position_T")
    )
    capture = TransformersCapture(model)
    steps: list[Any] = []
    capture.on_step = steps.append
    stopped_early = 0
    with capture, torch.no_grad():
        for row in trace.sequences.to_pylist():
            if row["task"] != "toy_generate":
                continue
            mine = np.flatnonzero(sequence_ids == row["sequence_id"])
            tokens = token_ids[mine[np.argsort(positions[mine])]].tolist()
            prompt = stock["samples"]["toy_generate"][row["doc_id"]]["arguments"][0][0]
            assert tokens[: row["choice_end"]] == tokenizer.encode(prompt)
            generated = tokenizer.decode(tokens[row["choice_end"] :])
            # The token that completes a stop string is never fed back.
            assert "e" not in generated
            assert row["response"].startswith(generated.rstrip("\ufffd"))
            stopped_early += len(generated) < 11
            steps.clear()
            model(torch.tensor([tokens]))
            alone = np.sort(steps[0].wait()[0].reshape(len(tokens), -1, 4))
            recorded = rows_of(trace, row["sequence_id"]).reshape(len(tokens), -1, 4)
            assert (np.sort(recorded) == alone).all()
    assert stopped_early


def test_a_generated_token_has_the_pass_it_was_fed_in(recorded: Recorded) -> None:
    trace, fed = recorded
    tokens, passes = tokens_of(trace), passes_of(trace)
    num_generated = 0
    for row in trace.sequences.to_pylist():
        ran, numbers = tokens[row["sequence_id"]], passes[row["sequence_id"]]
        if row["task"] != "toy_generate" or row["prefix_tokens"]:
            continue
        prompt, generated = ran[: row["choice_end"]], ran[row["choice_end"] :]
        first = numbers[0]
        assert numbers == [first] * len(prompt) + [first + 1 + n for n in range(len(generated))]
        index = int(np.flatnonzero((fed[first][:, -len(prompt) :] == prompt).all(axis=1))[0])
        assert [int(fed[n][index, 0]) for n in numbers[len(prompt) :]] == generated
        num_generated += len(generated)
    assert num_generated > 20
    assert len(assert_passes_ran(trace, fed, "toy_rolling")) > 1
    assert max(map(max, passes.values())) < len(fed)


def test_running_text_is_recorded_window_by_window(trace: Trace, stock: dict[str, Any]) -> None:
    rows = [r for r in trace.sequences.to_pylist() if r["task"] == "toy_rolling"]
    texts = {s["doc_id"]: s["arguments"][0][0] for s in stock["samples"]["toy_rolling"]}
    for doc_id, text in texts.items():
        windows = [row for row in rows if row["doc_id"] == doc_id]
        assert len(windows) == -(-len(text) // 200)
        assert all(row["question_end"] == row["num_tokens"] <= 200 for row in windows)
    assert trace.run["completeness"]["shortfall"] == 0


def test_slots_of_a_batch_add_up(trace: Trace) -> None:
    totals = trace.run["completeness"]
    assert totals["after_stop_tokens"] > 0
    assert totals["padding_tokens"] > 0
    assert totals["computed_tokens"] == (
        totals["recorded_tokens"] + totals["padding_tokens"] + totals["after_stop_tokens"]
    )


def test_weights_stand_beside_their_ids(trace: Trace) -> None:
    for block in trace.scan(weights=True):
        for layer in trace.layers:
            weights_TK = block.topk_weights(layer).astype(np.float64)
            assert (np.diff(weights_TK) <= 0).all()
            # Qwen3-MoE here leaves the softmax mass of the chosen experts unnormalised.
            assert ((weights_TK.sum(1) > 4 / 16) & (weights_TK.sum(1) <= 1.001)).all()
    sums = trace.counts.to_pandas().groupby(["layer"])[["count", "weight_sum"]].sum()
    stored = [block.topk_weights(0).astype(np.float64).sum() for block in trace.scan(weights=True)]
    assert sums["weight_sum"][0] == pytest.approx(sum(stored), rel=1e-9)


def test_beam_search_is_refused() -> None:
    class Step:
        num_tokens = 12

    batch = GenerationBatch(np.ones((2, 3), bool))
    with pytest.raises(Exception, match="12 tokens in a step where 6 were expected"):
        batch.add(Step(), 0)  # type: ignore[arg-type]
