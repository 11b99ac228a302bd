"""What sequences and answers can be: refused on their way into a trace, suspected on their way out.

A trace with one impossible number could not be opened, so it must never be accepted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np

from moe_probe.trace.schema import MAX_SEQUENCE_TOKENS, Sequence

_MAX_NUMBER = (1 << 62) - 1
_MAX_TOKENS = MAX_SEQUENCE_TOKENS - 1
_MAX_CHOICE = (1 << 31) - 1

READ = {
    "sequence_id": (0, _MAX_NUMBER),
    "num_tokens": (0, _MAX_TOKENS),
    "prefix_tokens": (0, _MAX_TOKENS),
    "cached_tokens": (0, _MAX_TOKENS),
    "multiplicity": (0, (1 << 31) - 1),
    "prefix_id": (-1, _MAX_NUMBER),
    "doc_id": (-1, _MAX_NUMBER),
    "new_from": (-1, _MAX_TOKENS),
}
"""The least and the most of each number of a sequence that readers depend on; -1 means "none"."""
_ENDS = ("prefix_end", "question_end", "cue_end", "choice_end")
_WRITTEN = {
    **READ,
    "prefix_end": (0, _MAX_TOKENS),
    **dict.fromkeys(_ENDS[1:], (-1, _MAX_TOKENS)),
    "truncated_tokens": (0, _MAX_NUMBER),
    "rank": (0, (1 << 22) - 1),  # SEQUENCES_PER_RANK ids of each are below _MAX_NUMBER
}
_TYPES = {field.name: str(field.type) for field in fields(Sequence)}


def check_facts(name: str, facts: Mapping[str, Any]) -> None:
    """Raise ValueError for a field that a sequence lacks, or a value that the field cannot have.

    Args:
        name: What to call the sequence.
        facts: Fields of `Sequence`; those of a stretch's end may be -1 for their default.
    """
    for field, value in facts.items():
        kind = _TYPES.get(field)
        if kind is None:
            raise ValueError(
                f"{name} has a field {field!r:.80}; the fields are {', '.join(_TYPES)}"
            )
        if kind == "int":
            if not _is_integer(value, *_WRITTEN[field]):
                raise _refused(name, field, value, _range(*_WRITTEN[field]))
        elif kind == "str":
            if not isinstance(value, str):
                raise _refused(name, field, value, "a text")
        elif kind == "bool":
            if not isinstance(value, (bool, np.bool_)):
                raise _refused(name, field, value, "True or False")
        elif not isinstance(value, (list, tuple)) or not all(
            _is_integer(choice, 0, _MAX_CHOICE) for choice in value
        ):
            raise _refused(name, field, value, f"a list of integers from 0 to {_MAX_CHOICE}")


def check_sequence(sequence: Sequence) -> None:
    """Raise ValueError where a field cannot be what it is, or fields do not fit each other."""
    name = f"sequence {sequence.sequence_id}"
    check_facts(name, sequence.to_json())
    ends = sequence.bounds
    if list(ends) != sorted(ends) or ends[0] < 0:
        given = ", ".join(f"{end} {getattr(sequence, end)}" for end in _ENDS)
        raise ValueError(
            f"{name} has {given} and {sequence.num_tokens} tokens; "
            "give ends in this order that do not fall and are at most its tokens"
        )
    if sequence.prefix_tokens > sequence.num_tokens:
        raise ValueError(
            f"{name} has {sequence.num_tokens} tokens, so it cannot share the first "
            f"{sequence.prefix_tokens}; give prefix_tokens of at most num_tokens"
        )
    cached = 0 if sequence.prefix_id >= 0 else sequence.prefix_tokens
    if sequence.cached_tokens != cached:
        raise ValueError(
            f"{name} has prefix_id {sequence.prefix_id}, prefix_tokens "
            f"{sequence.prefix_tokens} and cached_tokens {sequence.cached_tokens}; "
            f"cached_tokens must be {cached}"
        )


def check_answer(answer: Mapping[str, Any]) -> None:
    """Raise ValueError for an answer (ANSWER_SCHEMA) that cannot be."""
    name = "an answer"
    for field, most in (("sequence_id", _MAX_NUMBER), ("choice", _MAX_CHOICE)):
        if not _is_integer(answer[field], 0, most):
            raise _refused(name, field, answer[field], _range(0, most))
    kinds: dict[str, tuple[tuple[type, ...], str]] = {
        "loglik": ((int, float, np.integer, np.floating), "a number"),
        "is_greedy": ((bool, np.bool_), "True or False"),
        "response": ((str,), "a text"),
    }
    for field, (types, expected) in kinds.items():
        value = answer[field]
        is_other = not isinstance(value, types) or (field == "loglik" and isinstance(value, bool))
        if value is not None and is_other:
            raise _refused(name, field, value, f"{expected} or None")


def check_correct(correct: Mapping[Any, Any]) -> dict[tuple[str, int], bool]:
    """Return who was right as plain values; raises ValueError for a document that is none."""
    for key, value in correct.items():
        is_document = isinstance(key, tuple) and len(key) == 2 and isinstance(key[0], str)
        if not is_document or not _is_integer(key[1], *READ["doc_id"]):
            raise _refused("correct", "the key", key, "(task, doc_id)")
        if not isinstance(value, (bool, np.bool_)):
            raise _refused("correct", f"for {key!r:.80}", value, "True or False")
    return {(task, int(doc_id)): bool(value) for (task, doc_id), value in correct.items()}


def _is_integer(value: Any, least: int, most: int) -> bool:
    is_number = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    return bool(is_number and least <= value <= most)


def _range(least: int, most: int) -> str:
    none = " or -1 for none" if least < 0 else ""
    return f"an integer from 0 to {most}{none}"


def _refused(name: str, field: str, value: Any, expected: str) -> ValueError:
    given = " ".join(repr(value).split())
    return ValueError(f"{name} has {field} {given:.80}; give {expected}")
