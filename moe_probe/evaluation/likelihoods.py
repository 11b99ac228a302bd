"""Log-likelihood requests: which rows they become, and which an earlier run has answered."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from moe_probe.evaluation.requests import RequestReader, answer_key
from moe_probe.recording.contexts import token_hash
from moe_probe.recording.prior import PriorRun
from moe_probe.recording.rows import Request, Row

# As lm-eval hands them over: strings (None for running text), context tokens, continuation tokens.
TokenRequest = tuple[tuple[str, str] | None, list[int], list[int]]


@dataclass(frozen=True)
class Feeding:
    """Which tokens of a context and its continuation an engine feeds to the model."""

    max_tokens: int
    """Most tokens that are fed; the first ones are cut."""
    feeds_last: bool
    """Whether the last token is fed, although nobody asks what comes after it."""

    def fed(self, whole: list[int]) -> tuple[list[int], int]:
        """Return the tokens that are fed, and how many were cut before them."""
        tokens = whole if self.feeds_last else whole[:-1]
        fed = tokens[-self.max_tokens :]
        return fed, len(tokens) - len(fed)

    @property
    def max_window(self) -> int:
        """Most tokens of a window of running text."""
        return self.max_tokens - self.feeds_last


class Planned(NamedTuple):
    """One token request, with the request it stands for and the row that answers it."""

    request: Request
    row: Row


class LikelihoodPlanner:
    """Says for every token request which row answers it, as lm-eval groups them.

    Args:
        reader: Describes Instances.
        feeding: Which tokens are fed.
        groups: Whether requests that differ in the last token only share a row.
    """

    def __init__(self, reader: RequestReader, *, feeding: Feeding, groups: bool) -> None:
        self._reader = reader
        self._feeding = feeding
        self._groups = groups
        self._instances: list[Any] = []
        self._windows: dict[bytes, deque[Any]] = defaultdict(deque)

    def expect_instances(self, instances: list[Any]) -> None:
        """Note whose token requests come next, one for each Instance, in this order."""
        self._instances = list(instances)

    def expect_windows(self, instance: Any, tokens: list[int], prefix_token: int) -> None:
        """Note an Instance of running text, which lm-eval cuts into windows."""
        windows = get_rolling_token_windows(
            token_list=tokens,
            prefix_token=prefix_token,
            max_seq_len=self._feeding.max_window,
            context_len=1,
        )
        for context, continuation in map(make_disjoint_window, windows):
            self._windows[_token_bytes(context + continuation)].append(instance)

    def plan(self, requests: list[TokenRequest]) -> list[Planned]:
        """Say which row answers each request; the same row object for requests that share it."""
        rows: dict[Hashable, Row] = {}
        planned = []
        for number, (strings, context, continuation) in enumerate(requests):
            whole = context + continuation
            if strings is None:
                instance, key = self._windows[_token_bytes(whole)].popleft(), None
            else:
                instance = self._instances[number]
                key = answer_key("loglikelihood", strings)
            group: Hashable = tuple(whole[:-1]) if self._groups else number
            if group in rows:
                request = self._reader.request(instance, key)
                rows[group].requests.append(request)
            else:
                fed, truncated = self._feeding.fed(whole)
                row = self._reader.row(instance, key, context, fed, truncated=truncated)
                rows[group], request = row, row.requests[0]
            planned.append(Planned(request, rows[group]))
        return planned


def unique_rows(planned: list[Planned]) -> list[Row]:
    """The rows behind some requests, each once."""
    return list({id(each.row): each.row for each in planned}.values())


def known_answers(planned: list[Planned], prior: PriorRun | None) -> list[Any]:
    """Look up what an interrupted recording answered.

    Returns:
        For every request (log-likelihood, is greedy), or None where its row has to run: a row runs
        again unless every answer it gives is there.
    """
    if prior is None:
        return [None] * len(planned)
    known: dict[int, dict[Request, Any]] = {}
    for row in unique_rows(planned):
        prompt_hash = token_hash(row.tokens_T)
        answers = {request: prior.answer(request, prompt_hash) for request in row.requests}
        if all(answer is not None for answer in answers.values()):
            known[id(row)] = answers
    results: list[Any] = []
    for request, row in planned:
        answer = known.get(id(row), {}).get(request)
        results.append(None if answer is None else (answer["loglik"], answer["is_greedy"]))
    return results


def _token_bytes(tokens: list[int]) -> bytes:
    return np.asarray(tokens, np.int32).tobytes()
