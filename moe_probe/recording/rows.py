"""A row the model is to run, and the requests of the evaluation that it answers.

Shape suffixes: T tokens.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class Bounds(NamedTuple):
    """Where the stretches of a prompt end, in tokens fed to the model."""

    prefix_end: int
    question_end: int
    cue_end: int
    choice_end: int


@dataclass(frozen=True)
class Request:
    """One thing the evaluation asked for: a choice's log-likelihood, or a text."""

    task: str
    subject: str
    area: str
    doc_id: int
    kind: str
    choice: int
    answer_key: Hashable = None
    """What the evaluation names when it has the answer; None if it never does."""


@dataclass
class Row:
    """One row the model is to run, and every request it answers."""

    tokens_T: np.ndarray
    """Token ids int32 [T] fed to the model, without padding."""
    bounds: Bounds
    truncated: int
    requests: list[Request]

    def by_document(self) -> list[list[Request]]:
        """The requests, grouped by the document they belong to; several only for equal prompts."""
        groups: dict[tuple[str, int], list[Request]] = defaultdict(list)
        for request in self.requests:
            group = groups[request.task, request.doc_id]
            if request.choice not in [known.choice for known in group]:
                group.append(request)
        return list(groups.values())
