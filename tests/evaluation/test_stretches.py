"""Stretches of a prompt, with tokenizers that do and do not merge across their boundaries."""

from __future__ import annotations

import re

import pytest

from moe_probe.evaluation.stretches import StretchFinder
from moe_probe.recording.rows import Bounds

PREFIX = "About law.\n\nOne?\nA. x\nAnswer: A\n\n"
QUESTION = "Two?\nA. y\nB. z\nAnswer:"


def by_character(text: str) -> list[int]:
    return [ord(character) for character in text]


def by_word(text: str) -> list[int]:
    """Words with the white space before them: a line break belongs to the next word."""
    return [hash(word) for word in re.findall(r"\s*\S+|\s+$", text)]


def by_word_with_start(text: str) -> list[int]:
    return [-1, *by_word(text)]


@pytest.mark.parametrize("encode", [by_character, by_word, by_word_with_start])
def test_stretches_add_up_to_the_texts(encode) -> None:  # type: ignore[no-untyped-def]
    tokens = encode(PREFIX + QUESTION)
    bounds = StretchFinder(encode).bounds(
        PREFIX + QUESTION, tokens, question=QUESTION, num_fed=len(tokens) + 2, truncated=0
    )
    assert bounds.prefix_end == len(encode(PREFIX.rstrip() if encode != by_character else PREFIX))
    cue = tokens[bounds.question_end : bounds.cue_end]
    assert cue == by_character("Answer:") if encode == by_character else [hash("\nAnswer:")]
    assert bounds.cue_end == len(tokens)
    assert bounds.choice_end == len(tokens) + 2


def test_truncation_shifts_and_clamps() -> None:
    tokens = by_character(PREFIX + QUESTION)
    finder = StretchFinder(by_character)
    for truncated in (0, 5, len(PREFIX), len(PREFIX) + 4, len(tokens) - 3):
        num_fed = len(tokens) - truncated
        bounds = finder.bounds(
            PREFIX + QUESTION, tokens, question=QUESTION, num_fed=num_fed, truncated=truncated
        )
        assert bounds == Bounds(
            max(0, len(PREFIX) - truncated),
            max(0, len(tokens) - len("Answer:") - truncated),
            num_fed,
            num_fed,
        )


def test_without_a_question_text_everything_is_question() -> None:
    tokens = by_character("a story. It ends")
    bounds = StretchFinder(by_character).bounds(
        "a story. It ends", tokens, question=None, num_fed=len(tokens), truncated=0
    )
    assert bounds == Bounds(0, len(tokens), len(tokens), len(tokens))
