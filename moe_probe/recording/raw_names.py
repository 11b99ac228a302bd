"""Names of sequences in the trace of a pipeline stage: a request, with tokens that have no row.

Shape suffixes: T tokens.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from moe_probe.errors import TraceError


class RawName(NamedTuple):
    """What a name says."""

    request_id: str
    """The engine's own, which differs between any two of its requests."""
    unstored_T: np.ndarray
    """Leading tokens of the prompt that have no row of their own, int32; none of private text."""


def raw_name(request_id: str, unstored_T: Iterable[int]) -> str:
    """Name a sequence; equal in all stages."""
    return json.dumps([request_id, *map(int, unstored_T)], separators=(",", ":"))


def read_raw_name(name: str) -> RawName:
    """Read a name; raises TraceError where it is none."""
    try:
        request_id, *tokens = json.loads(name)
        if not isinstance(request_id, str):
            raise TypeError(f"it begins with {request_id!r:.40}")
        return RawName(request_id, np.fromiter(tokens, np.int32, len(tokens)))
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise TraceError(
            f"A sequence of a pipeline stage is named {name!r:.80}, which is no name ({error})."
        ) from error
