"""The requests that are being recorded: their rows, until each of them ends.

Shape suffixes: T tokens, B bytes of one token's ids, S slots of all layers, R router scalars,
L MoE layers, Q requests of a step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from moe_probe.hooks.step_buffer import HostRows
from moe_probe.hooks.vllm.batch import NewRequest
from moe_probe.hooks.vllm.pages import RowPages
from moe_probe.recording.completeness import Completeness
from moe_probe.recording.rows import Decisions
from moe_probe.trace import Capture, RowLayout


@dataclass
class _Open:
    request: NewRequest
    handle: int
    prompt_T: np.ndarray | None
    is_broken: bool = False
    """Whether some of its rows are missing or not to be trusted."""
    num_missed: int = 0
    """Tokens of it whose step was dropped, as far as no later row says where they belong."""


class EndedRequest(NamedTuple):
    """A request with everything that was decided for it."""

    request: NewRequest
    tokens_T: np.ndarray
    """The prompt, int32."""
    generated_T: np.ndarray
    """Generated tokens that were fed back, int32."""
    decisions: Decisions
    """Of the tokens after the cached ones."""


class RequestRows:
    """Collects rows step by step.

    Args:
        layout: Where a layer's ids lie in a row.
        capture: What rows have.
        totals: The books to keep.
    """

    def __init__(self, layout: RowLayout, capture: Capture, totals: Completeness) -> None:
        columns: dict[str, tuple[int, np.dtype]] = {
            "ids_TB": (layout.ids_bytes, np.dtype(np.uint8)),
            "token_id_T": (1, np.dtype(np.int32)),
        }
        if capture is Capture.WEIGHTS:
            columns["weights_TS"] = (layout.num_slots, np.dtype(np.float16))
            columns["scalars_TR"] = (layout.num_scalars, np.dtype(np.float16))
        self._columns = tuple(columns)
        columns["forward_pass_T"] = (1, np.dtype(np.int32))
        self._layers = [spec.layer for spec in layout.layers]
        self._pages = RowPages(columns)
        self._open: dict[str, _Open] = {}
        self._totals = totals
        for layer in self._layers:
            totals.layers.setdefault(str(layer), 0)
        self.silent_tokens = dict.fromkeys(self._layers, 0)
        """Tokens for which a layer handed over no valid decision, by layer."""

    def __len__(self) -> int:
        return len(self._open)

    @property
    def names(self) -> list[str]:
        """Engine ids of the requests that have not ended."""
        return list(self._open)

    def admit(self, request: NewRequest) -> None:
        """Begin to collect a request's rows."""
        prompt_T = None if request.prompt is None else np.asarray(request.prompt, np.int32)
        handle = self._pages.open(request.num_cached)
        self._open[request.request_id] = _Open(request, handle, prompt_T)

    def add(
        self, names: list[str], counts_Q: np.ndarray, rows: HostRows, forward_pass: int
    ) -> None:
        """Take in a step, and its number; rows of requests that are not collected are left out."""
        is_known_Q = np.fromiter((name in self._open for name in names), bool, len(names))
        if not is_known_Q.any():
            return
        if not is_known_Q.all():
            is_known_T = np.repeat(is_known_Q, counts_Q)
            names = [name for name, known in zip(names, is_known_Q, strict=True) if known]
            counts_Q = counts_Q[is_known_Q]
            *by_token, is_silent_L = rows
            kept = [None if array is None else array[is_known_T] for array in by_token]
            rows = HostRows._make([*kept, is_silent_L])
        self._put(names, counts_Q, rows, forward_pass)

    def miss(self, names: list[str], counts_Q: np.ndarray) -> None:
        """Note a step whose rows were dropped: its requests cannot be recorded any more."""
        for name, count in zip(names, counts_Q.tolist(), strict=True):
            if name in self._open:
                self._open[name].is_broken = True
                self._open[name].num_missed += count

    def _put(
        self, names: list[str], counts_Q: np.ndarray, rows: HostRows, forward_pass: int
    ) -> None:
        assert rows.position_T is not None
        assert rows.token_id_T is not None
        num_tokens = int(counts_Q.sum())
        opened = [self._open[name] for name in names]
        handles_Q = np.fromiter((each.handle for each in opened), np.int64, len(opened))
        starts_Q = rows.position_T[np.cumsum(counts_Q) - counts_Q].astype(np.int64)
        columns = {name: getattr(rows, name) for name in self._columns}
        columns["token_id_T"] = columns["token_id_T"][:, None]
        columns["forward_pass_T"] = np.full((num_tokens, 1), forward_pass, np.int32)
        lost_Q, skipped_Q = self._pages.put(handles_Q, starts_Q, counts_Q, **columns)
        self._totals.computed_tokens += num_tokens
        self._totals.superseded_tokens += int(lost_Q.sum())
        self._totals.missing_tokens += int(skipped_Q.sum())
        for index in np.flatnonzero(skipped_Q).tolist():
            opened[index].is_broken, opened[index].num_missed = True, 0
        for layer, tokens in self._captured(rows, num_tokens).items():
            self._totals.layers[str(layer)] = self._totals.layers.get(str(layer), 0) + tokens
            if not tokens:
                self.silent_tokens[layer] += num_tokens
                for each in opened:
                    each.is_broken = True

    def _captured(self, rows: HostRows, num_tokens: int) -> dict[int, int]:
        assert rows.is_silent_L is not None
        silent = rows.is_silent_L.tolist()
        return {
            layer: 0 if is_silent else num_tokens
            for layer, is_silent in zip(self._layers, silent, strict=True)
        }

    def end(self, name: str, length: int | None) -> EndedRequest | None:
        """Close a request.

        Args:
            name: The engine's id.
            length: Tokens it ran in the end, cached ones included; None if nobody knows, then as
                many as there are rows of.

        Returns:
            The request, or None where it was not collected, ran no token, or is not complete; the
            books then say so.
        """
        known = self._open.pop(name, None)
        if known is None:
            return None
        first, end = self._pages.span(known.handle)
        length = end + known.num_missed if length is None else length
        ended = None
        if first < length <= end and not known.is_broken:
            ended = self._ended(known, first, length)
        self._pages.close(known.handle)
        self._totals.superseded_tokens += max(end - max(length, first), 0)
        if ended is None and length > first:
            self._totals.lost_tokens += length - first
            self._totals.missing_tokens += max(length - end, 0)
        return ended

    def _ended(self, known: _Open, first: int, length: int) -> EndedRequest | None:
        rows = self._pages.get(known.handle, length)
        token_id_T = rows["token_id_T"][:, 0]
        split = max(known.request.num_prompt_tokens - first, 0)
        prompt_T = known.prompt_T
        if prompt_T is None:
            prompt_T = np.concatenate([np.full(first, -1, np.int32), token_id_T[:split]])
        elif not np.array_equal(token_id_T[:split], prompt_T[first:length]):
            # The tokens run are not those of the prompt, so the rows are another request's.
            return None
        # What was cached when the request came may have been run after all, after a preemption.
        request = known.request._replace(num_cached=first)
        decisions = Decisions(
            rows["ids_TB"],
            rows.get("weights_TS"),
            rows.get("scalars_TR"),
            rows["forward_pass_T"][:, 0],
        )
        return EndedRequest(request, prompt_T[:length], token_id_T[split:], decisions)
