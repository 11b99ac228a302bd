"""Repeated text: which positions of a sequence are new, and whose rows can stand for the old ones.

In a causal model the routing of a token depends on the tokens up to it and nothing else, so a
repeated context is a copy, not data.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from moe_probe.trace import Sequence

_KEPT_BYTES = 64 << 20
_VERIFY_EVERY = 16


def token_hash(tokens_T: np.ndarray) -> str:
    """Hash token ids int32 [T]: equal prompts, equal hash."""
    return blake2b(np.ascontiguousarray(tokens_T, "<i4").data, digest_size=16).hexdigest()


class ContextIndex:
    """Tells how many leading tokens of a sequence some earlier one already had.

    Keeps every prompt of the run, four bytes a token, in sorted order: the longest common prefix
    with all earlier prompts is the one with a neighbour.
    """

    def __init__(self) -> None:
        self._sorted: list[bytes] = []

    def add(self, tokens_T: np.ndarray) -> int:
        """Add a sequence int32 [T]; return its first position with a context not seen before."""
        # Big-endian, so that bytes sort as the token ids do.
        text = np.ascontiguousarray(tokens_T, ">u4").tobytes()
        at = bisect_left(self._sorted, text)
        known = max(
            (_common_tokens(text, other) for other in self._sorted[max(at - 1, 0) : at + 1]),
            default=0,
        )
        insort(self._sorted, text, lo=at, hi=at)
        return known


def _common_tokens(left: bytes, right: bytes) -> int:
    size = min(len(left), len(right)) // 4
    differs = np.flatnonzero(
        np.frombuffer(left, np.uint32, size) != np.frombuffer(right, np.uint32, size)
    )
    return int(differs[0]) if len(differs) else size


@dataclass
class PrefixCheck:
    """How well repeated prefixes repeated their routing, on a sample (quality check Q14)."""

    sequences: int = 0
    rows: int = 0
    equal_rows: int = 0


class PrefixStore:
    """Remembers who stores which leading tokens, and verifies a sample of the repetitions.

    Rows kept for verification are bounded to 64 MiB; the longest unused go first.

    Args:
        check: What was verified before, to add to.
    """

    def __init__(self, check: PrefixCheck | None = None) -> None:
        self.check = check or PrefixCheck()
        self._owners: dict[Hashable, tuple[int, int]] = {}
        self._rows: OrderedDict[Hashable, np.ndarray] = OrderedDict()
        self._kept_bytes = 0

    def find(self, keys: Mapping[int, Hashable], ids_TB: np.ndarray) -> tuple[int, int]:
        """Find who stores this sequence's leading tokens.

        Args:
            keys: By cut (a number of leading tokens), what identifies the text before it: see
                `sharing_keys`.
            ids_TB: The sequence's packed ids.

        Returns:
            The owner's sequence id and the cut, or (-1, 0): nobody does, or this sequence was in
            the verified sample and its routing differs.
        """
        for cut in sorted(keys, reverse=True):
            if cut and keys[cut] in self._owners:
                owner, uses = self._owners[keys[cut]]
                self._owners[keys[cut]] = (owner, uses + 1)
                if uses % _VERIFY_EVERY == 0 and not self._verify(keys[cut], ids_TB[:cut]):
                    return -1, 0
                return owner, cut
        return -1, 0

    def add(self, keys: Mapping[int, Hashable], sequence_id: int, ids_TB: np.ndarray) -> None:
        """Make a recorded sequence available as owner of its leading tokens."""
        prefix = min(keys, default=0)
        for cut, key in keys.items():
            if cut and key not in self._owners:
                self._owners[key] = (sequence_id, 0)
                if cut == prefix:
                    # Only the few-shot prefix repeats often enough to be worth verifying.
                    self._keep(key, ids_TB[:cut])

    def _keep(self, key: Hashable, rows_TB: np.ndarray) -> None:
        self._rows[key] = rows_TB.copy()
        self._kept_bytes += rows_TB.nbytes
        while self._kept_bytes > _KEPT_BYTES:
            _, dropped = self._rows.popitem(last=False)
            self._kept_bytes -= dropped.nbytes

    def _verify(self, key: Hashable, rows_TB: np.ndarray) -> bool:
        stored_TB = self._rows.get(key)
        if stored_TB is None:
            return True
        self._rows.move_to_end(key)
        equal_T = (stored_TB == rows_TB).all(axis=1)
        self.check.sequences += 1
        self.check.rows += len(equal_T)
        self.check.equal_rows += int(equal_T.sum())
        return bool(equal_T.all())


def sharing_keys(sequence: Sequence, tokens_T: np.ndarray) -> dict[int, Hashable]:
    """What identifies the text before each cut at which sequences may share rows.

    Prefixes are shared inside a subject and whole prompts inside a document, so that subject and
    stretch of a stored row hold for everyone who shares it.
    """
    bounds, document = sequence.bounds, (sequence.task, sequence.doc_id)
    cuts: dict[int, Hashable] = {bounds[0]: (sequence.task, sequence.subject)}
    for cut in (bounds[2], bounds[4]):
        if cut > bounds[0]:
            cuts[cut] = (*document, bounds[:2])
    return {cut: (where, cut, token_hash(tokens_T[:cut])) for cut, where in cuts.items()}
