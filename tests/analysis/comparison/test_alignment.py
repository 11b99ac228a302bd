"""Rows of two traces are aligned as a loop over contexts aligns them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moe_probe.analysis.comparison.alignment import Alignment
from moe_probe.analysis.comparison.contexts import common_contexts, context_marks
from moe_probe.analysis.reading.rules import Rule
from moe_probe.analysis.reading.source import Source
from moe_probe.trace import LayerSpec, TraceWriter, open_trace
from moe_probe.trace.schema import Sequence
from tests.analysis.comparison.prompts import LAYERS, Context, aligned, make_prompts, route, write


def rows(source: Source) -> dict[tuple[int, int], list[list[int]]]:
    """Ids of every layer by part and row."""
    found = {}
    for number, part in enumerate(source.parts):
        block = source.trace.read_layers(part.path, list(source.layers))
        for row in range(part.stretches.rows):
            ids = [block.topk_ids(layer)[row].tolist() for layer in source.layers]
            found[number, row] = ids
    return found


def expected(context: Context, noise: float) -> list[list[int]]:
    routed = [(spec, route(spec, context, noise=noise)[0].tolist()) for spec in LAYERS]
    return [[spec.none_id if i < 0 else i for i in ids] for spec, ids in routed]  # type: ignore[misc]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("token_ids", [True, False])
def test_aligned_rows_are_those_of_equal_contexts(
    tmp_path: Path, seed: int, token_ids: bool
) -> None:
    prompts = make_prompts(seed)
    order = np.random.default_rng(seed).permutation(len(prompts))
    others = [prompts[number] for number in order[: 2 * len(prompts) // 3]]
    first = Source(write(tmp_path / "a", prompts, noise=0, token_ids=token_ids))
    second = Source(write(tmp_path / "b", others, noise=0.5, share=seed % 2 == 0))
    alignment = Alignment(first, second)
    stored = [rows(source) for source in (first, second)]
    found = []
    for number, part in enumerate(first.parts):
        runs = alignment.runs(part, first.pieces(part, Rule.UNIQUE))
        for x in range(len(runs.row_X)):
            for step in range(int(runs.length_X[x])):
                mine = stored[0][number, int(runs.row_X[x]) + step]
                theirs = stored[1][int(runs.part_X[x]), int(runs.other_row_X[x]) + step]
                found.append((mine, theirs))
    if token_ids:
        contexts = [context for _, context in aligned(prompts, others)]
    else:
        # Only whole prompts can be told to be equal.
        hashes = {prompt.tokens[: prompt.ends[3]] for prompt in others}
        contexts, seen = [], set()
        for prompt in prompts:
            end = prompt.ends[3] if prompt.tokens[: prompt.ends[3]] in hashes else 0
            for position in range(len(prompt.tokens)):
                context = prompt.tokens[: position + 1]
                if position < end and context not in seen:
                    contexts.append(context)
                seen.add(context)
    assert len(contexts) > 30
    wanted = [(expected(context, 0), expected(context, 0.5)) for context in contexts]
    assert sorted(map(str, found)) == sorted(map(str, wanted))


def test_repeated_prompts_are_paired_in_their_order(tmp_path: Path) -> None:
    layers = [LayerSpec(layer=0, num_experts=8, top_k=1)]
    for name in "ab":
        with TraceWriter(tmp_path / name, layers=layers) as writer:
            for expert in (3, 5):
                writer.add([np.full((4, 1), expert)], token_ids=np.arange(4), doc_id=expert)
    sources = [Source(open_trace(tmp_path / name)) for name in "ab"]
    marks = [context_marks(source, token_ids=True) for source in sources]
    partner_S, common_S = common_contexts(*marks)
    assert partner_S.tolist() == [0, 1]
    assert common_S.tolist() == [4, 4]


def test_the_last_token_of_a_choice_is_not_needed(tmp_path: Path) -> None:
    """vLLM runs it and transformers does not: what comes before it is common to both."""
    layers = [LayerSpec(layer=0, num_experts=8, top_k=1)]
    for name, tokens in (("hf", 6), ("vllm", 7)):
        run = {"runs_last_token": name == "vllm"}
        with TraceWriter(tmp_path / name, layers=layers, run=run) as writer:
            facts: Any = {"kind": "loglikelihood", "cue_end": 4, "question_end": 2}
            writer.add([np.zeros((tokens, 1), int)], token_ids=np.arange(tokens), **facts)
    first, second = (Source(open_trace(tmp_path / name)) for name in ("hf", "vllm"))
    assert Alignment(first, second).common_S.tolist() == [6]
    assert Alignment(second, first).common_S.tolist() == [6]


def test_tokens_of_a_cache_are_aligned_with_nothing(tmp_path: Path) -> None:
    layers = [LayerSpec(layer=0, num_experts=8, top_k=1)]
    for name, cached in (("a", 0), ("b", 3)):
        with TraceWriter(tmp_path / name, layers=layers) as writer:
            sequence = Sequence(
                sequence_id=writer.next_sequence_id(),
                num_tokens=6,
                prefix_tokens=cached,
                cached_tokens=cached,
                prompt_hash="same",
            )
            rows_TB = writer.layout.pack([np.zeros((6 - cached, 1), int)])
            # The rest of b has ids, and still nobody knows what came before.
            writer.write(sequence, rows_TB, token_id_T=np.arange(cached, 6, dtype=np.int32))
    first, second = (Source(open_trace(tmp_path / name)) for name in "ab")
    assert not Alignment(first, second)
    assert Alignment(first, first)


def test_prompts_of_equal_hash_and_other_lengths_are_not_equal(tmp_path: Path) -> None:
    layers = [LayerSpec(layer=0, num_experts=8, top_k=1)]
    for name, end in (("a", 4), ("b", 5)):
        with TraceWriter(tmp_path / name, layers=layers) as writer:
            writer.add([np.zeros((6, 1), int)], prompt_hash="same", choice_end=end)
            writer.add([np.zeros((6, 1), int)], choice_end=4)  # a prompt without a hash
    first, second = (Source(open_trace(tmp_path / name)) for name in "ab")
    assert not Alignment(first, second)
    assert Alignment(first, first).common_S.tolist() == [4, 0]


def test_one_damaged_beginning_does_not_loop(tmp_path: Path) -> None:
    """A sequence that leaves its first tokens to itself is a fault, and shares nothing."""
    layers = [LayerSpec(layer=0, num_experts=8, top_k=1)]
    with TraceWriter(tmp_path / "a", layers=layers) as writer:
        sequence = Sequence(
            sequence_id=writer.next_sequence_id(), num_tokens=6, prefix_tokens=2, cached_tokens=2
        )
        sequence.multiplicity = 0
        writer.write(sequence, writer.layout.pack([np.zeros((4, 1), int)]))
    part = next((tmp_path / "a" / "sequences").iterdir())
    table = pq.read_table(part)
    for name in ("prefix_id", "cached_tokens"):
        zero = pa.array([0], table.schema.field(name).type)
        table = table.set_column(table.schema.get_field_index(name), name, zero)
    pq.write_table(table, part)
    source = Source(open_trace(tmp_path / "a"))
    marks = context_marks(source, token_ids=True)
    assert not marks.known_SE.any()
