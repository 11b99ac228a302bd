"""What run.json says of a recording inside an engine: completeness, and why if something lacks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from moe_probe.recording.completeness import Completeness
from moe_probe.recording.recorder import Recorder

_DROPPED = ("dropped_tokens", "dropped_steps")


@dataclass
class Dropped:
    """What came when there was no room for it."""

    tokens: int = 0
    steps: int = 0


def books_of(
    recorder: Recorder,
    dropped: Dropped,
    silent_tokens: Mapping[int, int],
    error: BaseException | None,
) -> dict[str, Any]:
    """The facts of one rank.

    Args:
        recorder: Keeps the totals.
        dropped: What there was no room for.
        silent_tokens: Tokens for which a layer gave no valid decision, by layer.
        error: What ended the recording, if anything did.
    """
    totals = recorder.totals
    books: dict[str, Any] = {
        "completeness": {
            **totals.to_json(),
            **dict(zip(_DROPPED, (dropped.tokens, dropped.steps), strict=True)),
        },
        "prefix_check": asdict(recorder.prefixes.check),
    }
    silent = {layer: tokens for layer, tokens in silent_tokens.items() if tokens}
    if error is not None:
        books["reason"] = f"{type(error).__name__}: {error}"
    elif silent:
        books["reason"] = f"layers without a decision for some tokens (layer: tokens): {silent}"
    elif dropped.steps:
        books["reason"] = f"{dropped.tokens} tokens came faster than they could be recorded"
    elif totals.lost_tokens:
        books["reason"] = f"{totals.lost_tokens} tokens are of requests that were not seen whole"
    return books


def merged_books(ranks: list[dict[str, Any]]) -> dict[str, Any]:
    """The facts of all data-parallel ranks together."""
    books = [rank["completeness"] for rank in ranks]
    total = sum((Completeness.from_json(each) for each in books), Completeness())
    dropped = {name: sum(each[name] for each in books) for name in _DROPPED}
    reasons = [rank["reason"] for rank in ranks if "reason" in rank]
    return {
        "completeness": {**total.to_json(), **dropped},
        **({"reason": "; ".join(reasons)} if reasons else {}),
    }
