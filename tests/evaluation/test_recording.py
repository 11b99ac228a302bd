"""Recording under lm-eval against what lm-eval itself says it ran."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from moe_probe.evaluation.tasks import load_tasks
from moe_probe.hooks.transformers import TransformersCapture
from moe_probe.trace import Trace, open_trace
from tests.evaluation.record_helpers import (
    assert_passes_ran,
    record,
    rows_of,
    stock_samples,
    watched_forwards,
)

LIKELIHOOD_TASKS = ["toy_alpha", "toy_beta", "toy_words"]


Recorded = tuple[Trace, list[np.ndarray]]


@pytest.fixture(scope="module")
def recorded(
    byte_model: Path, toy_tasks: Path, tmp_path_factory: pytest.TempPathFactory
) -> Recorded:
    output = tmp_path_factory.mktemp("recorded") / "trace"
    with watched_forwards() as fed:
        record(byte_model, LIKELIHOOD_TASKS, output, include_path=toy_tasks, num_fewshot=2)
    return open_trace(output), fed


@pytest.fixture(scope="module")
def trace(recorded: Recorded) -> Trace:
    return recorded[0]


@pytest.fixture(scope="module")
def stock(byte_model: Path, toy_tasks: Path) -> dict[str, Any]:
    items = load_tasks(LIKELIHOOD_TASKS, include_path=toy_tasks).load()
    return stock_samples(byte_model, items, num_fewshot=2)


def test_log_likelihoods_and_scores_are_bit_identical(trace: Trace, stock: dict[str, Any]) -> None:
    expected: dict[tuple[str, int, int], tuple[float, bool]] = {}
    correct = {}
    for task, samples in stock["samples"].items():
        for sample in samples:
            correct[task, sample["doc_id"]] = bool(sample["acc"])
            for choice, responses in enumerate(sample["resps"]):
                expected[task, sample["doc_id"], choice] = tuple(responses[0])
    recorded = {}
    for row in trace.sequences.to_pylist():
        assert row["correct"] == correct[row["task"], row["doc_id"]]
        answers = zip(row["choices"], row["choice_logliks"], row["choice_is_greedy"], strict=True)
        for choice, loglik, is_greedy in answers:
            recorded[row["task"], row["doc_id"], choice] = (loglik, is_greedy)
    assert recorded == expected
    for task, metrics in trace.run["results"].items():
        assert metrics["acc,none"] == stock["results"][task]["acc,none"]


def test_every_token_lm_eval_ran_is_recorded_once(trace: Trace, stock: dict[str, Any]) -> None:
    tokenizer = stock["lm"].tokenizer
    expected: Counter[str] = Counter()
    for task, samples in stock["samples"].items():
        # One row answers all requests whose tokens differ in the last one only.
        rows = {
            tuple(tokenizer.encode(context + continuation)[:-1])
            for sample in samples
            for context, continuation in sample["arguments"]
        }
        expected[task] = sum(map(len, rows))
    recorded: Counter[str] = Counter()
    for row in trace.sequences.to_pylist():
        recorded[row["task"]] += row["num_tokens"] * row["multiplicity"]
    assert recorded == expected
    completeness = trace.run["completeness"]
    assert completeness["expected_tokens"] == sum(expected.values())
    assert completeness["shortfall"] == 0
    slots_per_layer = completeness["computed_tokens"]
    assert completeness["layers"] == {"0": slots_per_layer, "2": slots_per_layer}
    counts = trace.counts.to_pandas().groupby(["layer", "task"])["count"].sum()
    for layer in trace.layers:
        assert {task: counts[layer, task] for task in expected} == {
            task: 4 * tokens for task, tokens in expected.items()
        }


def test_rows_equal_sequences_run_alone(trace: Trace, stock: dict[str, Any]) -> None:
    model, tokenizer = stock["lm"].model, stock["lm"].tokenizer
    prompts = {}
    for task, samples in stock["samples"].items():
        for sample in samples:
            for choice, (context, continuation) in enumerate(sample["arguments"]):
                tokens = tokenizer.encode(context + continuation)[:-1]
                prompts[task, sample["doc_id"], choice] = tokens
    capture = TransformersCapture(model)
    steps: list[Any] = []
    capture.on_step = steps.append
    compared = 0
    with capture, torch.no_grad():
        for row in trace.sequences.to_pylist()[::3]:
            tokens = prompts[row["task"], row["doc_id"], row["choices"][0]]
            assert row["num_tokens"] == len(tokens)
            steps.clear()
            model(torch.tensor([tokens]))
            alone = np.sort(steps[0].wait()[0].reshape(len(tokens), -1, 4))
            recorded = rows_of(trace, row["sequence_id"]).reshape(len(tokens), -1, 4)
            assert (np.sort(recorded) == alone).all()
            compared += alone.size
    assert compared > 10_000


def test_rows_of_a_batch_have_its_forward_pass(recorded: Recorded) -> None:
    trace, fed = recorded
    # Shared rows were run by the sequence that stores them.
    assert assert_passes_ran(trace, fed, *LIKELIHOOD_TASKS) == set(range(len(fed)))
    assert len(fed) > 10


def test_stretches_are_the_texts_they_say(trace: Trace, stock: dict[str, Any]) -> None:
    tokenizer = stock["lm"].tokenizer
    for row in trace.sequences.filter(
        trace.sequences["task"].to_numpy() == "toy_alpha"
    ).to_pylist():
        sample = stock["samples"]["toy_alpha"][row["doc_id"]]
        text = sample["arguments"][0][0]
        tokens = tokenizer.encode(text)
        question = tokenizer.decode(tokens[row["prefix_end"] : row["question_end"]])
        cue = tokenizer.decode(tokens[row["question_end"] : row["cue_end"]])
        assert question == sample["doc"]["question"] + "\n"
        assert cue == "Answer:"
        # Of the choice " A", two bytes, the model is fed all but the last token.
        assert row["choice_end"] == row["num_tokens"] == row["cue_end"] + 1


def test_shared_prefixes_give_the_counts_of_storing_everything(
    byte_model: Path, toy_tasks: Path, tmp_path: Path, trace: Trace
) -> None:
    # At level counts nothing is shared: every row the model ran is counted as it comes.
    record(
        byte_model,
        LIKELIHOOD_TASKS,
        tmp_path / "all",
        include_path=toy_tasks,
        num_fewshot=2,
        capture="counts",
    )
    keys = ["layer", "expert", "task", "subject", "area", "segment"]
    stored_once = trace.counts.to_pandas().groupby(keys)[["count", "unique_count"]].sum()
    everything = open_trace(tmp_path / "all").counts.to_pandas()
    assert trace.run["completeness"]["shared_tokens"] > 1000
    assert stored_once.equals(everything.groupby(keys)[["count", "unique_count"]].sum())


def test_new_contexts_are_those_no_earlier_sequence_had(
    trace: Trace, stock: dict[str, Any]
) -> None:
    tokenizer, new = stock["lm"].tokenizer, 0
    seen: set[tuple[int, ...]] = set()
    for row in trace.sequences.to_pylist():
        sample = stock["samples"][row["task"]][row["doc_id"]]
        tokens = tokenizer.encode("".join(sample["arguments"][row["choices"][0]]))[:-1]
        contexts = {tuple(tokens[: end + 1]) for end in range(len(tokens))}
        assert len(contexts - seen) == len(tokens) - row["new_from"]
        new += len(contexts - seen)
        seen |= contexts
    unique = trace.counts.to_pandas().groupby("layer")["unique_count"].sum()
    assert unique.to_dict() == {0: 4 * new, 2: 4 * new}


def test_truncated_prompts_lose_their_beginning(
    byte_model: Path, toy_tasks: Path, tmp_path: Path
) -> None:
    record(
        byte_model,
        ["toy_alpha"],
        tmp_path / "cut",
        include_path=toy_tasks,
        num_fewshot=3,
        model_args={"max_length": 100},
    )
    trace = open_trace(tmp_path / "cut")
    for row in trace.sequences.to_pylist():
        assert row["num_tokens"] == 100
        assert row["truncated_tokens"] > 0
        assert row["cue_end"] - row["question_end"] == 7
        assert row["cue_end"] == 99
    assert trace.run["completeness"]["shortfall"] == 0


def test_one_row_per_request_without_the_logits_cache(
    byte_model: Path, toy_tasks: Path, tmp_path: Path
) -> None:
    arguments: dict[str, Any] = {"include_path": toy_tasks, "batch_size": "3"}
    record(byte_model, ["toy_beta"], tmp_path / "one", **arguments)
    record(
        byte_model, ["toy_beta"], tmp_path / "four", model_args={"logits_cache": False}, **arguments
    )
    one, four = (open_trace(tmp_path / name) for name in ("one", "four"))
    documents = 8
    assert one.sequences.num_rows == documents
    assert four.sequences.num_rows == 4 * documents
    assert four.run["completeness"]["shortfall"] == 0
    # Seven prompts differ; the eighth document repeats one, which is one row with the cache.
    tokens = sum(r["num_tokens"] for r in one.sequences.to_pylist())
    assert four.run["completeness"]["expected_tokens"] == 4 * tokens
    unique = [
        trace.counts.to_pandas().groupby(["layer", "expert"])["unique_count"].sum()
        for trace in (one, four)
    ]
    assert unique[0].equals(unique[1])


def test_batch_size_probes_are_not_recorded(
    byte_model: Path, toy_tasks: Path, tmp_path: Path
) -> None:
    with watched_forwards() as fed:
        record(
            byte_model,
            ["toy_beta"],
            tmp_path / "auto",
            include_path=toy_tasks,
            batch_size="auto",
            model_args={"max_batch_size": 4, "max_length": 256},
        )
    trace = open_trace(tmp_path / "auto")
    # The size is looked for first, with prompts of one token again and again.
    text = [tokens_BT for tokens_BT in fed if len(np.unique(tokens_BT)) > 1]
    assert 0 < len(text) < len(fed)
    assert assert_passes_ran(trace, text, "toy_beta") == set(range(len(text)))
    completeness = trace.run["completeness"]
    assert completeness["probe_tokens"] > 0
    assert completeness["shortfall"] == 0
    assert completeness["computed_tokens"] == (
        completeness["probe_tokens"]
        + completeness["padding_tokens"]
        + completeness["recorded_tokens"]
    )


def test_sampling_keeps_whole_documents(byte_model: Path, toy_tasks: Path, tmp_path: Path) -> None:
    with watched_forwards() as fed:
        record(
            byte_model,
            ["toy_words"],
            tmp_path / "third",
            include_path=toy_tasks,
            sample_every=3,
            batch_size="1",
        )
    trace = open_trace(tmp_path / "third")
    # Passes that ran nothing of the sample have numbers too.
    passes = assert_passes_ran(trace, fed, "toy_words")
    assert len(passes) <= max(passes) < len(fed)
    rows = trace.sequences.to_pylist()
    by_document: dict[int, set[bool]] = {row["doc_id"]: set() for row in rows}
    for row in rows:
        by_document[row["doc_id"]].add(row["sampled"])
        assert row["choice_logliks"] is not None
    assert all(len(states) == 1 for states in by_document.values())
    assert {state for states in by_document.values() for state in states} == {True, False}
    completeness = trace.run["completeness"]
    assert completeness["shortfall"] == 0
    sampled = sum(r["num_tokens"] * r["multiplicity"] for r in rows if r["sampled"])
    assert completeness["unsampled_tokens"] == completeness["expected_tokens"] - sampled
    counts = trace.counts.to_pandas().groupby("layer")[["count", "unique_count"]].sum()
    assert counts["count"].to_dict() == {0: 4 * sampled, 2: 4 * sampled}
    # Contexts that only unsampled documents had before count as new.
    new = sum(r["num_tokens"] - r["new_from"] for r in rows if r["sampled"])
    assert counts["unique_count"].to_dict() == {0: 4 * new, 2: 4 * new}
    first = min((r for r in rows if r["sampled"]), key=lambda r: r["sequence_id"])
    assert first["new_from"] == 0
