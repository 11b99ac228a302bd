"""What a request says about itself: the tags of `moe-probe record`, or a user's own.

Tags come from clients of a server, so nothing in them is trusted.

Shape suffixes: T tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from moe_probe.recording.rows import SERVED, Bounds, Request, Row

TAG = "moe_probe"
"""The extra argument that carries a row's description, as an object or as its JSON text."""

_KINDS = ("loglikelihood", "loglikelihood_rolling", "generate_until")
_MAX_TEXT = 1000
_MAX_NUMBER = (1 << 62) - 1
# A trace holds choices in 32 bits.
_MAX_CHOICE = (1 << 31) - 1


def external_id(request_id: str) -> str:
    """The id by which a client knows a request: the engine appends eight random digits."""
    name, separator, suffix = request_id.rpartition("-")
    return name if separator and len(suffix) == 8 else request_id


def describe(row: Row, *, run: str = "") -> dict[str, Any]:
    """The tag that says what a row is, to travel with its request; `read_row` reads it.

    Args:
        row: The row.
        run: Names the evaluation, where an engine may serve several.
    """
    request = row.requests[0]
    return {
        "run": run,
        "task": request.task,
        "subject": request.subject,
        "area": request.area,
        "doc": request.doc_id,
        "kind": request.kind,
        "choice": request.choice,
        "bounds": list(row.bounds),
        "truncated": row.truncated,
    }


def run_of(tags: Mapping[str, Any]) -> str:
    """The evaluation that a request belongs to; empty for any other request."""
    return _text((_object(tags.get(TAG)) or {}).get("run"))


def read_row(
    tags: Mapping[str, Any],
    tokens_T: np.ndarray,
    *,
    num_prompt_tokens: int,
    request_id: str = "",
    num_cached: int = 0,
    keeps_tokens: bool = False,
) -> Row:
    """Describe an engine's request by its tags.

    Args:
        tags: Its extra arguments.
        tokens_T: Its prompt, int32; of one that was aborted, what was run of it.
        num_prompt_tokens: The length of the whole prompt.
        request_id: The engine's name of it.
        num_cached: Leading tokens that the engine had in its cache.
        keeps_tokens: Whether the text of live traffic may be kept; what an evaluation asks for is
            no user's text and always is.
    """
    described = _object(tags.get(TAG))
    facts = described if described is not None else tags
    kind = _text(facts.get("kind"))
    is_evaluation = described is not None and kind in _KINDS
    return Row(
        tokens_T=tokens_T,
        bounds=_bounds(facts.get("bounds"), num_prompt_tokens, len(tokens_T)),
        truncated=max(_number(facts.get("truncated"), 0), 0),
        requests=[
            Request(
                task=_text(facts.get("task")),
                subject=_text(facts.get("subject")) or _text(facts.get("task")),
                area=_text(facts.get("area")),
                doc_id=max(_number(facts.get("doc"), -1), -1),
                kind=kind if is_evaluation else SERVED,
                choice=max(_number(facts.get("choice"), 0, _MAX_CHOICE), 0),
                # Nobody answers live traffic; a list of what waits would grow without end.
                answer_key=external_id(request_id) if is_evaluation else None,
            )
        ],
        request_id=external_id(request_id),
        cached=num_cached,
        is_private=not (is_evaluation or keeps_tokens),
    )


def _object(value: Any) -> dict[str, Any] | None:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    return value if isinstance(value, dict) else None


def _text(value: Any) -> str:
    return value[:_MAX_TEXT] if isinstance(value, str) else ""


def _number(value: Any, default: int, largest: int = _MAX_NUMBER) -> int:
    """An integer, or a text of one, such as a client may send."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 19:
        value = int(value)
    is_number = isinstance(value, int) and not isinstance(value, bool)
    return value if is_number and abs(value) <= largest else default


def _bounds(value: Any, num_prompt_tokens: int, num_run: int) -> Bounds:
    """Where the stretches of the prompt end; the whole prompt is the question by default."""
    bounds = Bounds(0, num_prompt_tokens, num_prompt_tokens, num_prompt_tokens)
    if isinstance(value, list) and len(value) == 4 and all(type(end) is int for end in value):
        given = Bounds(*value)
        if list(given) == sorted(given) and given[0] >= 0 and given[-1] == num_prompt_tokens:
            bounds = given
    return Bounds._make(min(end, num_run) for end in bounds)
