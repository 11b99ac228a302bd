"""What the values of options of `moe-probe record` mean; raises UsageError for others."""

from __future__ import annotations

import json
import re
from typing import Any

from moe_probe.errors import UsageError

_MAX_DOCUMENTS = 10**15


def parse_model_args(text: str) -> dict[str, Any]:
    """Read key=value,... or, where a value has structure, one JSON object."""
    if text.lstrip().startswith("{"):
        try:
            return dict(json.loads(text))
        except ValueError as error:
            raise UsageError(
                f"--model-args begins as a JSON object but is none: {error}."
            ) from error
    arguments: dict[str, Any] = {}
    for item in filter(None, text.split(",")):
        name, separator, value = item.partition("=")
        if not separator:
            raise UsageError(f"--model-args has {item!r}, which is not key=value.")
        number = re.fullmatch(r"-?[0-9]{1,18}(\.[0-9]+)?", value)
        literal: Any = {"True": True, "False": False, "None": None}.get(value, value)
        arguments[name] = (float(value) if number[1] else int(value)) if number else literal
    return arguments


def parse_sample(text: str) -> int:
    """Read 1/N, which records one document in N; return N."""
    found = re.fullmatch(r"1/([0-9]{1,18})", text)
    if not found or int(found[1]) < 1:
        raise UsageError(f"--sample {text!r:.80} is not of the form 1/N, such as 1/50.")
    return int(found[1])


def parse_limit(limit: float | None) -> float | None:
    """Return a number of documents as an int, a share below 1 as it is."""
    if limit is None or 0 < limit < 1:
        return limit
    if not (1 <= limit <= _MAX_DOCUMENTS and limit == int(limit)):
        raise UsageError(
            f"--limit {limit} is neither a whole number of documents from 1 to {_MAX_DOCUMENTS} "
            "nor a share between 0 and 1."
        )
    return int(limit)


def parse_batch_size(text: str, *, is_hf: bool) -> str:
    """Return a number of rows or auto, which transformers may repeat: auto:N."""
    if not text:
        return "8" if is_hf else "auto"
    # lm-eval's own model class takes how often to look for the largest batch, too.
    if not re.fullmatch(r"[1-9][0-9]{0,8}|auto" + (r"(:[1-9][0-9]{0,8})?" if is_hf else ""), text):
        raise UsageError(f"--batch-size {text!r:.80} is neither a number from 1 on nor auto.")
    return text
