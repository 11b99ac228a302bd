"""What TraceWriter accepts: rows that fit their sequence, and every sequence id once.

Shape suffixes: T tokens, B bytes of one token's ids, S slots and R router scalars over all layers.
"""

from __future__ import annotations

import json
from array import ArrayType
from typing import Any

import numpy as np

from moe_probe.trace.layout import ROUTER_SCALARS, Capture, LayerSpec, RowLayout
from moe_probe.trace.limits import check_sequence
from moe_probe.trace.schema import MAX_FORWARD_PASS, Sequence
from moe_probe.trace.staging import Rows

Layers = tuple[LayerSpec, ...] | list[LayerSpec]
_MAX_TOKEN_ID = (1 << 31) - 1


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

    def is_written(self, sequence_id: int) -> bool:
        """Whether an id is written, as far as the writer knows."""
        return sequence_id < self._first_unwritten or sequence_id in self._written

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
        # By id, from `first_id` on: a trace may have millions of sequences.
        self._first_id, self._shareable = first_id, ArrayType("i")

    def accept(self, sequence: Sequence, rows: Rows | None) -> None:
        """Note a sequence as written.

        Raises ValueError where rows do not fit it, the layers or each other, or where it is
        impossible, was written before, or shares tokens of one that was not, or whose rows
        nobody keeps.
        """
        check_sequence(sequence)
        owner = sequence.prefix_id
        if owner >= sequence.sequence_id or not self.ids.is_written(owner):
            raise ValueError(
                f"sequence {sequence.sequence_id} has prefix_id {owner}; "
                "give the id of an earlier sequence that was written, or -1 for none"
            )
        self._check_owner(sequence)
        if rows is not None:
            _check_rows(sequence, rows, self._layout, self._capture, self.max_rows)
        self.ids.claim(sequence.sequence_id)
        self._note(sequence)

    def _check_owner(self, sequence: Sequence) -> None:
        place, shared = sequence.prefix_id - self._first_id, sequence.prefix_tokens
        has_rows = self._capture is not Capture.COUNTS
        if sequence.prefix_id >= 0 and shared and sequence.multiplicity and not has_rows:
            raise ValueError(
                f"sequence {sequence.sequence_id} shares its first {shared} tokens with "
                f"{sequence.prefix_id}, but capture 'counts' keeps no rows to count for both; "
                "write it whole, without prefix_id"
            )
        # Those of a recording that this one continues were checked by it.
        if place >= 0 and shared > self._shareable[place]:
            raise ValueError(
                f"sequence {sequence.sequence_id} shares its first {shared} tokens with "
                f"{sequence.prefix_id}, which can share {self._shareable[place]}: all it has, or "
                "none if a cache gave it some; give fewer prefix_tokens or another prefix_id"
            )

    def _note(self, sequence: Sequence) -> None:
        place = sequence.sequence_id - self._first_id
        missing = place + 1 - len(self._shareable)
        self._shareable.extend([0] * max(missing, 0))
        self._shareable[place] = 0 if sequence.cached_tokens else sequence.num_tokens

    def rows(
        self,
        topk_ids: list[np.ndarray],
        topk_weights: list[np.ndarray] | None,
        router_scalars: list[np.ndarray] | None,
        token_id_T: np.ndarray | None,
        forward_pass_T: np.ndarray | int | None,
    ) -> Rows:
        """Join per-layer arrays [T, K] and [T, 3].

        Raises ValueError for ids that a layer lacks, for weights that are needed and not there, and
        for arrays of another number, shape or type than the layers have.
        """
        layers = self._layout.layers
        ids = _by_layer("topk_ids", topk_ids, layers)
        widths = [spec.top_k for spec in layers]
        _check_shapes("topk_ids", ids, layers, widths, len(ids[0]) if ids[0].ndim else 0)
        ids_TB = self._layout.pack(ids)
        weights_TS = scalars_TR = None
        if self._capture is Capture.WEIGHTS:
            if topk_weights is None:
                raise ValueError("capture 'weights' needs topk_weights")
            weights = _by_layer("topk_weights", topk_weights, layers)
            _check_shapes("topk_weights", weights, layers, widths, len(ids_TB))
            weights_TS = _joined("topk_weights", weights, layers)
            with_scalars = [spec for spec in layers if spec.scalars]
            if with_scalars:
                scalars = _by_layer("router_scalars", router_scalars or [], with_scalars)
                widths = [len(ROUTER_SCALARS)] * len(scalars)
                _check_shapes("router_scalars", scalars, with_scalars, widths, len(ids_TB))
                scalars_TR = _joined("router_scalars", scalars, with_scalars)
        return Rows(ids_TB, token_id_T, weights_TS, scalars_TR, forward_pass_T)


def _by_layer(name: str, arrays: Any, layers: Layers) -> list[np.ndarray]:
    if not layers:
        raise ValueError(f"the trace has no layers, so there is no {name}; name layers at first")
    try:
        given = [np.asarray(array) for array in arrays]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} holds no arrays ({error!s:.80}); give a list of them") from error
    if len(given) != len(layers):
        raise ValueError(
            f"{name} has {len(given)} arrays; give one for each of {len(layers)} layers"
        )
    return given


def _check_shapes(
    name: str, arrays: list[np.ndarray], layers: Layers, widths: list[int], rows: int
) -> None:
    for array, spec, width in zip(arrays, layers, widths, strict=True):
        if array.shape != (rows, width):
            raise ValueError(
                f"{name} of layer {spec.layer} has shape {array.shape}; "
                f"give {(rows, width)}, one row per token"
            )


def _joined(name: str, arrays: list[np.ndarray], layers: Layers) -> np.ndarray:
    """Join as float16. What is not finite is the model's, and is kept: a check tells of it."""
    for array, spec in zip(arrays, layers, strict=True):
        # Types of others, such as bfloat16 of ml_dtypes, are of kind V.
        if array.dtype.kind not in "fiuV":
            raise ValueError(
                f"{name} of layer {spec.layer} is of type {array.dtype}; give float numbers"
            )
    with np.errstate(over="ignore"):
        return np.concatenate([array.astype(np.float16) for array in arrays], axis=1)


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
        raise ValueError(
            f"{name} has {rows} tokens, more than the {max_rows} of a segment; "
            "cut it, or give the writer more segment_tokens"
        )
    if ids_TB.shape != (rows, layout.ids_bytes) or ids_TB.dtype != np.uint8:
        raise ValueError(
            f"{name}: packed ids are {ids_TB.dtype} {ids_TB.shape}, "
            f"expected uint8 {(rows, layout.ids_bytes)}"
        )
    if token_id_T is not None:
        if np.shape(token_id_T) != (rows,):
            raise ValueError(f"{name}: {np.shape(token_id_T)} token ids for {rows} rows")
        _check_integers(name, "token ids", np.asarray(token_id_T), _MAX_TOKEN_ID)
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
    _check_integers(name, "forward passes", forward_pass_T, MAX_FORWARD_PASS)


def _check_integers(name: str, what: str, values_T: np.ndarray, most: int) -> None:
    is_integer = values_T.dtype.kind in "iu"
    # Looking for a maximum that the type forbids would cost as much as all the rest.
    is_small = values_T.dtype == np.int32 or (is_integer and values_T.max() <= most)
    if not is_integer or not is_small or values_T.min() < -1:
        span = f"from {values_T.min()} to {values_T.max()} " if values_T.dtype.kind in "fiu" else ""
        raise ValueError(
            f"{name}: {what} {span}of type {values_T.dtype}; expected integers from 0 to {most}, "
            "or -1 where one is not known"
        )


def event(content: dict[str, Any]) -> bytes:
    """One line of a segment's log."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), default=_plain)
    # A lone surrogate, which no parquet string can hold, becomes a question mark.
    return text.encode("utf-8", errors="replace")


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{value!r:.80} cannot be kept in a trace")
