"""The rule decision counts the token whose logits answer the prompt, once for every prompt.

A token's expert is its own id, so that counts of experts are counts of tokens.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from moe_probe.analysis.reading.rules import Rule
from moe_probe.analysis.scan import count
from moe_probe.trace import LayerSpec, Trace, TraceWriter, open_trace
from moe_probe.trace.schema import Sequence

LAYER = LayerSpec(layer=0, num_experts=64, top_k=1)


def trace_of(path: Path, *sequences: tuple[list[int], dict[str, Any]]) -> Trace:
    """Write sequences of these tokens, each only those behind what it shares."""
    with TraceWriter(path, layers=[LAYER]) as writer:
        for tokens, facts in sequences:
            sequence = Sequence(
                sequence_id=writer.next_sequence_id(), num_tokens=len(tokens), **facts
            )
            own_T = np.array(tokens[sequence.prefix_tokens :], np.int32)
            writer.write(sequence, writer.layout.pack([own_T[:, None]]) if len(own_T) else None)
    return open_trace(path)


def decisions(trace: Trace) -> list[int]:
    """Tokens that count, in ascending order."""
    layer = count(trace, Rule.DECISION).layer(LAYER.layer)
    assert layer.tokens == layer.counts_N.sum()
    counts = layer.counts_N.astype(int).tolist()
    return [token for token, number in enumerate(counts) for _ in range(number)]


def test_four_choices_of_a_few_shot_question_decide_once(tmp_path: Path) -> None:
    """Prefix 1 2, a question of two tokens, cue 30 and above, then a choice of two tokens."""
    sequences: list[tuple[list[int], dict[str, Any]]] = []
    for number in range(3):
        prompt = [1, 2, 10 + number, 20 + number, 30 + number]
        first = len(sequences)
        for choice in range(4):
            shared = 5 if choice else 2 if number else 0
            owner = first if choice else 0 if number else -1
            bounds = {"prefix_end": 2, "question_end": 4, "cue_end": 5, "doc_id": number}
            sharing = {"prefix_id": owner, "prefix_tokens": shared, "new_from": shared}
            sequences.append(([*prompt, 40 + choice, 50 + choice], bounds | sharing))
    assert decisions(trace_of(tmp_path / "shared", *sequences)) == [30, 31, 32]
    # The same where every choice has been run and stored on its own.
    alone = [(tokens, facts | {"prefix_id": -1, "prefix_tokens": 0}) for tokens, facts in sequences]
    assert decisions(trace_of(tmp_path / "alone", *alone)) == [30, 31, 32]


def test_an_equal_prompt_of_another_document_decides_nothing_new(tmp_path: Path) -> None:
    first = ([1, 2, 30], {"doc_id": 0, "question_end": 2})
    copied = {"doc_id": 1, "question_end": 2, "multiplicity": 0, "new_from": 3}
    again = ([1, 2, 30], {**copied, "prefix_id": 0, "prefix_tokens": 3})
    assert decisions(trace_of(tmp_path / "trace", first, again)) == [30]


def test_letters_scored_by_one_run_decide_at_its_last_token(tmp_path: Path) -> None:
    """The prompt ends with the cue, and the choice has no token of its own."""
    facts = {"choices": [0, 1, 2, 3], "prefix_end": 1, "question_end": 3, "cue_end": 4}
    assert decisions(trace_of(tmp_path / "trace", ([1, 2, 3, 30], facts))) == [30]


def test_generation_decides_before_its_first_token(tmp_path: Path) -> None:
    facts = {"kind": "generate_until", "prefix_end": 1, "question_end": 3, "choice_end": 4}
    tokens = [1, 2, 3, 30, 40, 41, 42]
    other = ([1, 5, 6, 31], {**facts, "new_from": 1})
    assert decisions(trace_of(tmp_path / "trace", (tokens, facts), other)) == [30, 31]


def test_a_plain_document_decides_at_its_end(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "trace", layers=[LAYER]) as writer:
        for tokens in ([1, 2, 30], [31], [1, 2, 30, 4, 32]):
            writer.add([np.array(tokens)[:, None]])
    assert decisions(open_trace(tmp_path / "trace")) == [30, 31, 32]


def test_a_prompt_whose_end_an_engine_cached_has_no_decision(tmp_path: Path) -> None:
    cached = {"cached_tokens": 3, "prefix_tokens": 3, "cue_end": 3}
    assert decisions(trace_of(tmp_path / "trace", ([1, 2, 30, 40], cached))) == []
