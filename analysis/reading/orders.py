"""Token orders: in which sequence the tokens of a trace follow one another. Idle runs depend on it.

In every order of tokens those of a document stay together, by position. One order is not of
tokens but of what the engine ran at a time.

Shape suffixes: C clusters.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

import numpy as np

from moe_probe.errors import UsageError

TOKENS, PASSES = "tokens", "forward passes"
WINDOWS = (1_000, 5_000, 10_000, 50_000)
"""Idle-window lengths of a report, in tokens."""
PASS_WINDOWS = (10, 100, 1_000, 10_000)
"""The same in forward passes."""
_SEED = re.compile("[0-9]{1,18}")
_KINDS = ("canonical", "execution", "shuffle-docs", "request-local", "forward-passes")


@dataclass(frozen=True)
class Order:
    """A token order by name.

    canonical: by task, subject and document, each shared prefix before its first document.
    execution: documents in the order in which the engine ran them, as the trace has them.
    shuffle-docs: documents in random order, drawn from `seed`.
    request-local: every document for itself; no idle run crosses a document's end.
    forward-passes: what the engine ran at a time is one unit, by number and rank for rank.
    """

    kind: str
    seed: int = 0

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `canonical`, `shuffle-docs:3`, ...; raises UsageError for anything else."""
        kind, _, seed = text.partition(":")
        is_seeded = kind == "shuffle-docs" and _SEED.fullmatch(seed)
        if kind not in _KINDS or (seed and not is_seeded):
            raise UsageError(
                f"There is no token order {text!r:.80}. Use canonical, execution, "
                "shuffle-docs:SEED with up to 18 digits, request-local or forward-passes."
            )
        return cls(kind, int(seed or 0))

    def __str__(self) -> str:
        return f"{self.kind}:{self.seed}" if self.kind == "shuffle-docs" else self.kind

    @property
    def unit(self) -> str:
        """What idle runs and windows are counted in: TOKENS or PASSES."""
        return PASSES if self.kind == "forward-passes" else TOKENS

    @property
    def windows(self) -> tuple[int, ...]:
        """Lengths of idle windows where none are asked for, in this unit."""
        return PASS_WINDOWS if self.unit == PASSES else WINDOWS

    def documents(self, first_row_C: np.ndarray) -> np.ndarray:
        """Return the clusters in this order of tokens: int64 [C].

        Args:
            first_row_C: Number of the stored row with which each cluster begins.

        Raises UsageError for forward passes, which are no order of documents.
        """
        if self.unit == PASSES:
            raise UsageError(
                f"The order {self} has no order of documents: idle runs in it are those of "
                "PassExperts. Use canonical, execution, shuffle-docs:SEED or request-local here."
            )
        clusters = len(first_row_C)
        if self.kind == "execution":
            return np.argsort(first_row_C, kind="stable")
        if self.kind == "shuffle-docs":
            return np.random.default_rng([self.seed, clusters]).permutation(clusters)
        return np.arange(clusters)


CANONICAL = Order("canonical")
