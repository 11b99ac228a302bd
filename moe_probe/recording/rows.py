"""A row a model runs, the requests it answers, and what was decided for it.

Shape suffixes: T tokens, B bytes of one token's ids, S slots of one token over all layers,
R router scalars of one token over all layers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

SERVED = "served"
"""The kind of a request that no evaluation asked for."""


class Bounds(NamedTuple):
    """Where the stretches of a prompt end, in tokens fed to the model."""

    prefix_end: int
    question_end: int
    cue_end: int
    choice_end: int


class Decisions(NamedTuple):
    """What the routers decided for the tokens of one row, and in which pass of the model."""

    ids_TB: np.ndarray
    """Packed ids (`RowLayout.pack`), uint8."""
    weights_TS: np.ndarray | None = None
    """Gate weights, float16."""
    scalars_TR: np.ndarray | None = None
    """Router scalars, float16."""
    forward_pass_T: np.ndarray | None = None
    """By `Recorder.number_pass`, int32."""

    def after(self, start: int) -> Decisions:
        """The decisions without the first `start` tokens."""
        return self._cut(slice(start, None))

    def until(self, stop: int) -> Decisions:
        """The decisions of the first `stop` tokens."""
        return self._cut(slice(stop))

    def _cut(self, tokens: slice) -> Decisions:
        return Decisions._make(None if array is None else array[tokens] for array in self)


@dataclass(frozen=True)
class Request:
    """One thing that was asked for: a choice's log-likelihood, or a text."""

    task: str
    subject: str
    area: str
    doc_id: int
    kind: str
    choice: int
    answer_key: Hashable = None
    """What the answer will be named by; None if there never is one."""


@dataclass
class Row:
    """One row the model runs, and every request it answers."""

    tokens_T: np.ndarray
    """Token ids int32 [T] fed to the model, without padding."""
    bounds: Bounds
    truncated: int
    requests: list[Request]
    request_id: str = ""
    """The engine's name of the run, where it has one."""
    cached: int = 0
    """Leading tokens an engine had in its cache: it decided nothing for them."""
    is_private: bool = False
    """Whether the trace must say nothing of its text: no token ids, no hash."""

    @property
    def is_live(self) -> bool:
        """Whether it is traffic of a server: its texts are many and not kept in memory, so nobody
        knows which of its contexts are new, and its rows are not shared."""
        return self.requests[0].kind == SERVED

    def by_document(self) -> list[list[Request]]:
        """The requests, grouped by the document they belong to; several only for equal prompts."""
        groups: dict[tuple[str, int], list[Request]] = defaultdict(list)
        for request in self.requests:
            group = groups[request.task, request.doc_id]
            if request.choice not in [known.choice for known in group]:
                group.append(request)
        return list(groups.values())
