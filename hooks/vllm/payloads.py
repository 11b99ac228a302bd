"""What clients of a server may say of an evaluation: nothing of it is trusted."""

from __future__ import annotations

import json
import math
from typing import Any

from moe_probe.errors import UsageError

_MAX_BYTES = 1 << 20

Answers = list[tuple[str, dict[str, Any]]]


def read_answers(payload: Any) -> Answers:
    """Check answers to requests; raises UsageError where they are none."""
    if not isinstance(payload, list):
        raise _refused("answers", payload)
    return [_answer(pair) for pair in payload]


def read_evaluation(payload: Any) -> tuple[dict[str, Any], dict[tuple[str, int], bool]]:
    """Check what an evaluation says at its end; raises UsageError where it says something else.

    Returns:
        Its facts, and whether the model was right, by (task, doc_id).
    """
    if not isinstance(payload, dict) or len(json.dumps(payload)) > 16 * _MAX_BYTES:
        raise _refused("an evaluation", payload)
    facts = {name: value for name, value in payload.items() if name != "correct"}
    correct = {}
    for item in payload.get("correct") or ():
        match item:
            case [str(task), int(doc_id), bool(value)] if abs(doc_id) < 1 << 62:
                correct[task, doc_id] = value
            case _:
                raise _refused("whether a document was answered correctly", item)
    return facts, correct


def _answer(pair: Any) -> tuple[str, dict[str, Any]]:
    match pair:
        case [str(name), {"loglik": int() | float() as loglik, "is_greedy": bool(is_greedy)}]:
            if len(name) <= _MAX_BYTES and not math.isnan(loglik):
                return name, {"loglik": float(loglik), "is_greedy": is_greedy}
        case [str(name), {"response": str(response)}]:
            if len(name) + len(response) <= _MAX_BYTES:
                return name, {"response": response}
    raise _refused("an answer", pair)


def _refused(what: str, value: Any) -> UsageError:
    return UsageError(f"{value!r:.80} is not {what}. Let `moe-probe record --server` send it.")
