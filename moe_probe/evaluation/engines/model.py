"""What every recorded model class has in common: which rows are to run, and which are known.

Mixed in before a model class of lm-eval. Scores are computed by lm-eval exactly as without
recording; the overrides only look at what passes.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, Protocol

import numpy as np

from moe_probe.errors import UsageError
from moe_probe.evaluation.likelihoods import LikelihoodPlanner, known_answers, unique_rows
from moe_probe.evaluation.requests import answer_key
from moe_probe.recording.prior import PriorRun
from moe_probe.recording.rows import Request, Row


class Books(Protocol):
    """Who keeps account of a recording: a recorder in this process, or an engine's."""

    prior: PriorRun | None

    def expect(self, num_tokens: int) -> None:
        """Note a row that the evaluation is going to run."""

    def note_known(self, request: Request, tokens_T: np.ndarray, num_tokens: int) -> None:
        """Note a sequence that an interrupted recording has."""

    def answer(self, key: Hashable, answer: dict[str, Any]) -> None:
        """Note an answer, under the key its request has."""


class RecordedModel:
    """Plans what lm-eval asks for, and answers what an interrupted recording knows."""

    _books: Books | None = None
    _planner: LikelihoodPlanner

    def begin(self, books: Books, planner: LikelihoodPlanner) -> None:
        """Look at everything from now on; without it, this is lm-eval's class."""
        self._books, self._planner = books, planner
        self.cache_hook = _AnswerHook(self)

    def set_cache_hook(self, cache_hook: Any) -> None:
        """Refuse lm-eval's answer cache: what it answers never runs through the model."""
        if self._books is not None:
            raise UsageError(
                "use_cache cannot be combined with recording: cached answers route no tokens. "
                "Leave use_cache out."
            )
        super().set_cache_hook(cache_hook)  # type: ignore[misc]

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> Any:
        if self._books is not None:
            self._planner.expect_instances(requests)
            # Our own progress knows subjects and tokens; lm-eval's bars would fight with it.
            disable_tqdm = True
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm)  # type: ignore[misc]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> Any:
        if self._books is not None:
            for instance in requests:
                tokens = self.tok_encode(instance.args[0])  # type: ignore[attr-defined]
                prefix_token = self.prefix_token_id  # type: ignore[attr-defined]
                self._planner.expect_windows(instance, tokens, prefix_token)
            disable_tqdm = True
        run = super().loglikelihood_rolling  # type: ignore[misc]
        return run(requests, disable_tqdm=disable_tqdm)

    def _loglikelihood_tokens(self, requests: list[Any], **options: Any) -> Any:
        run = super()._loglikelihood_tokens  # type: ignore[misc]
        if self._books is None:
            return run(requests, **options)
        planned = self._planner.plan(requests)
        answers = known_answers(planned, self._books.prior)
        to_run = [p for p, answer in zip(planned, answers, strict=True) if answer is None]
        rows = unique_rows(to_run)
        running = set(map(id, rows))
        for row in unique_rows(planned):
            if id(row) in running:
                self._books.expect(len(row.tokens_T))
            else:
                self._books.note_known(row.requests[0], row.tokens_T, len(row.tokens_T))
        open_requests = [r for r, a in zip(requests, answers, strict=True) if a is None]
        new = iter(self._run_rows(rows, lambda: run(open_requests, **options)))
        return [next(new) if answer is None else answer for answer in answers]

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        run = super().generate_until  # type: ignore[misc]
        if self._books is None:
            return list(run(requests, disable_tqdm=disable_tqdm))
        if self._books.prior is not None and any((r.repeats or 1) > 1 for r in requests):
            raise UsageError(
                "A task that generates several answers per document cannot be resumed: which one "
                "is missing cannot be told. Record it into a new --output."
            )
        answers = [self._known_response(instance) for instance in requests]
        todo = [r for r, answer in zip(requests, answers, strict=True) if answer is None]
        for instance in todo:
            self._expect_generation(instance)
        new = iter(run(todo, disable_tqdm=True) if todo else [])
        return [next(new) if answer is None else answer for answer in answers]

    def _run_rows(self, rows: list[Row], run: Any) -> Any:
        """Run log-likelihood requests, knowing the rows that come."""
        raise NotImplementedError

    def _known_response(self, instance: Any) -> str | None:
        """The text an interrupted recording has for an Instance, noted as known."""
        raise NotImplementedError

    def _expect_generation(self, instance: Any) -> None:
        """Note an Instance that is going to be generated."""
        raise NotImplementedError

    def _note_answer(self, kind: str, arguments: Any, answer: dict[str, Any]) -> None:
        """Take in an answer, named as lm-eval names it."""
        if self._books is not None:
            self._books.answer(answer_key(kind, arguments), answer)


class _AnswerHook:
    """Stands where lm-eval reports each answer to its cache."""

    def __init__(self, model: RecordedModel) -> None:
        self._model = model

    def add_partial(self, kind: str, arguments: Any, answer: Any) -> None:
        if kind == "loglikelihood":
            facts: dict[str, Any] = {"loglik": float(answer[0]), "is_greedy": bool(answer[1])}
        elif kind == "generate_until":
            facts = {"response": str(answer)}
        else:
            return
        self._model._note_answer(kind, arguments, facts)
