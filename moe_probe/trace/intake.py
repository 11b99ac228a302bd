"""What TraceWriter accepts: rows that fit their sequence, and every sequence id once.

Shape suffixes: T tokens, B bytes of one token's ids, S slots and R router scalars over all layers.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from moe_probe.trace.layout import Capture, RowLayout
from moe_probe.trace.schema import MAX_FORWARD_PASS, Sequence
from moe_probe.trace.staging import Rows


class SequenceIds:
    """Gives sequence ids, from `first` on, and takes each back once."""

    def __init__(self, first: int) -> None:
        self._next = first
        # Every id below is written, or belongs to the recording that this one continues.
        self._first_unwritten = first
        self._written: set[int] = set()

    def next(self) -> int:
        self._next += 1
        return self._next - 1

    def claim(self, sequence_id: int) -> None:
        """Note an id as written; raises ValueError if it was before, or was never given."""
        is_given = self._first_unwritten <= sequence_id < self._next
        if not is_given or sequence_id in self._written:
            raise ValueError(
                f"sequence id {sequence_id} was written before or never reserved; "
                "take it from next_sequence_id()"
            )
        self._written.add(sequence_id)
        while self._first_unwritten in self._written:
            self._written.remove(self._first_unwritten)
            self._first_unwritten += 1


class Intake:
    """Accepts sequences with their rows.

    Args:
        layout: The layers of a row.
        capture: What a row must have.
        max_rows: The most rows of one sequence.
        first_id: The first sequence id to give.
    """

    def __init__(self, layout: RowLayout, capture: Capture, max_rows: int, first_id: int) -> None:
        self.max_rows = max_rows
        self.ids = SequenceIds(first_id)
        self._layout, self._capture = layout, capture

    def accept(self, sequence: Sequence, rows: Rows | None) -> None:
        """Note a sequence as written.

        Raises ValueError where rows do not fit it, the layers or each other, or where it is
        impossible or was written before.
        """
        _check_prefix(sequence)
        if rows is not None:
            _check_rows(sequence, rows, self._layout, self._capture, self.max_rows)
        self.ids.claim(sequence.sequence_id)

    def rows(
        self,
        topk_ids: list[np.ndarray],
        topk_weights: list[np.ndarray] | None,
        router_scalars: list[np.ndarray] | None,
        token_id_T: np.ndarray | None,
        forward_pass_T: np.ndarray | int | None,
    ) -> Rows:
        """Join per-layer arrays [T, K] and [T, 3].

        Raises ValueError for ids that a layer lacks, and for weights that are needed and not there.
        """
        if self._capture is Capture.WEIGHTS and topk_weights is None:
            raise ValueError("capture 'weights' needs topk_weights")
        weights_TS, scalars_TR = _joined(topk_weights), _joined(router_scalars)
        ids_TB = self._layout.pack(topk_ids)
        return Rows(ids_TB, token_id_T, weights_TS, scalars_TR, forward_pass_T)


def _check_prefix(sequence: Sequence) -> None:
    cached = 0 if sequence.prefix_id >= 0 else sequence.prefix_tokens
    if sequence.cached_tokens != cached:
        raise ValueError(
            f"sequence {sequence.sequence_id} has prefix_id {sequence.prefix_id}, prefix_tokens "
            f"{sequence.prefix_tokens} and cached_tokens {sequence.cached_tokens}; "
            f"cached_tokens must be {cached}"
        )


def _check_rows(
    sequence: Sequence, given: Rows, layout: RowLayout, capture: Capture, max_rows: int
) -> None:
    ids_TB: np.ndarray = given.ids_TB
    token_id_T: Any = given.token_id_T
    weights_TS: Any = given.weights_TS
    scalars_TR: Any = given.scalars_TR
    rows, name = len(ids_TB), f"sequence {sequence.sequence_id}"
    if rows != sequence.num_tokens - sequence.prefix_tokens:
        raise ValueError(
            f"{name} has {sequence.num_tokens} tokens, "
            f"{sequence.prefix_tokens} of them shared, but {rows} rows were given"
        )
    if rows > max_rows:
        raise ValueError(f"{name} has {rows} tokens, more than the {max_rows} of a segment")
    if ids_TB.shape != (rows, layout.ids_bytes) or ids_TB.dtype != np.uint8:
        raise ValueError(
            f"{name}: packed ids are {ids_TB.dtype} {ids_TB.shape}, "
            f"expected uint8 {(rows, layout.ids_bytes)}"
        )
    if token_id_T is not None and np.shape(token_id_T) != (rows,):
        raise ValueError(f"{name}: {np.shape(token_id_T)} token ids for {rows} rows")
    if given.forward_pass_T is not None:
        _check_passes(name, np.asarray(given.forward_pass_T), rows)
    if capture is Capture.WEIGHTS:
        slots, scalars = (rows, layout.num_slots), (rows, layout.num_scalars)
        if np.shape(weights_TS) != slots:
            raise ValueError(f"{name}: weights of shape {np.shape(weights_TS)}, expected {slots}")
        if layout.num_scalars and np.shape(scalars_TR) != scalars:
            raise ValueError(
                f"{name}: router scalars of shape {np.shape(scalars_TR)}, expected {scalars}"
            )


def _check_passes(name: str, forward_pass_T: np.ndarray, rows: int) -> None:
    if forward_pass_T.shape not in ((), (rows,)):
        raise ValueError(f"{name}: {forward_pass_T.shape} forward passes for {rows} rows")
    # Looking for a maximum that the type forbids would cost as much as all the rest.
    is_integer, is_int32 = forward_pass_T.dtype.kind in "iu", forward_pass_T.dtype == np.int32
    is_small = is_int32 or forward_pass_T.max() <= MAX_FORWARD_PASS
    if not is_integer or not is_small or forward_pass_T.min() < -1:
        raise ValueError(
            f"{name}: forward passes from {forward_pass_T.min()} to {forward_pass_T.max()} of type "
            f"{forward_pass_T.dtype}; expected integers from 0 to {MAX_FORWARD_PASS}, or -1 where "
            "one is not known"
        )


def _joined(layers: list[np.ndarray] | None) -> np.ndarray | None:
    return np.concatenate(layers, axis=1).astype(np.float16) if layers else None


def event(content: dict[str, Any]) -> bytes:
    """One line of a segment's log."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), default=_plain)
    # A lone surrogate, which no parquet string can hold, becomes a question mark.
    return text.encode("utf-8", errors="replace")


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{value!r:.80} cannot be kept in a trace")
