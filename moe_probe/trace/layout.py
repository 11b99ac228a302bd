"""What is kept of a routing decision, and where it lies in a row: capture level, layers, layout.

Shape suffixes: T tokens, K slots (top-k).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from functools import cached_property
from typing import Any, Self

import numpy as np

from moe_probe.errors import TraceError

ROUTER_SCALARS = ("logsumexp", "entropy", "margin")
"""What a router's logits say of a token beyond its slots, in the order it is stored: logsumexp;
entropy of the router's distribution, in nats: the softmax of the logits, or where the layer's facts
name `sigmoid` as scoring, their sigmoids over the sum of them; margin, the k-th largest logit minus
the next one."""


class Capture(StrEnum):
    """How much of a routing decision is kept; each level holds everything of the one before."""

    COUNTS = "counts"
    IDS = "ids"
    WEIGHTS = "weights"


@dataclass(frozen=True, kw_only=True)
class LayerSpec:
    """One MoE layer, under the model's own layer index."""

    layer: int
    """The model's own index of the decoder layer."""
    num_experts: int
    """Routed experts the router chooses among; shared experts are not counted."""
    top_k: int
    """Slots per token."""
    empty_slots: bool = False
    """Whether a token may fill fewer than `top_k` slots; the top id value then means "none"."""
    scalars: bool = False
    """Whether capture level `weights` has ROUTER_SCALARS too; other levels never have them."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What the configuration says beside: groups, shared experts, scoring, module path."""

    @property
    def itemsize(self) -> int:
        """Bytes per expert id: 1 while every id, and "none" where it can occur, fits a byte."""
        return 1 if self.num_experts + self.empty_slots <= 256 else 2

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype("u1" if self.itemsize == 1 else "<u2")

    @property
    def none_id(self) -> int | None:
        """What an empty slot is stored as; None where slots are never empty."""
        return int(np.iinfo(self.dtype).max) if self.empty_slots else None

    @property
    def ids_column(self) -> str:
        return f"L{self.layer:02d}"

    @property
    def weights_column(self) -> str:
        return f"W{self.layer:02d}"

    @property
    def scalars_column(self) -> str:
        return f"S{self.layer:02d}"

    @property
    def row_bytes(self) -> int:
        return self.top_k * self.itemsize

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """Rebuild a layer; raises TraceError where a field is absent or out of bounds."""
        try:
            spec = cls(**{f.name: value[f.name] for f in fields(cls) if f.name in value})
        except (KeyError, TypeError) as error:
            raise TraceError(f"The trace describes a layer as {value!r:.80}: {error}.") from error
        spec.check()
        return spec

    def check(self) -> None:
        """Raise TraceError for what no layer can be; a bool is no number here."""
        numbers = (self.layer, self.num_experts, self.top_k)
        flags = (self.empty_slots, self.scalars)
        ok = all(type(number) is int for number in numbers)
        ok = ok and all(type(flag) is bool for flag in flags)
        ok = ok and 0 <= self.layer < 100_000 and 0 < self.top_k <= self.num_experts < 65_535
        if not ok or not isinstance(self.facts, dict):
            raise TraceError(f"The trace describes an impossible layer: {self!r:.200}.")


@dataclass(frozen=True)
class RowLayout:
    """Where each layer's part lies inside one token's row of a step or staging buffer."""

    layers: tuple[LayerSpec, ...]

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Rebuild the layers; raises TraceError where that is not a list of distinct layers."""
        if not isinstance(value, list):
            raise TraceError(f"The trace describes its layers as {value!r:.80}.")
        layout = cls(tuple(map(LayerSpec.from_json, value)))
        layout.check()
        return layout

    def check(self) -> None:
        """Raise TraceError for an impossible layer, or one that occurs twice."""
        for spec in self.layers:
            spec.check()
        if len({spec.layer for spec in self.layers}) < len(self.layers):
            raise TraceError("The trace describes a layer twice.")

    @cached_property
    def id_offsets(self) -> list[int]:
        """Byte offset of each layer's ids; the last entry is the row's length in bytes."""
        return [0, *np.cumsum([spec.row_bytes for spec in self.layers]).tolist()]

    @cached_property
    def slot_offsets(self) -> list[int]:
        """Offset of each layer's weights, in float16 items; the last entry is their number."""
        return [0, *np.cumsum([spec.top_k for spec in self.layers]).tolist()]

    @cached_property
    def scalar_offsets(self) -> list[int]:
        """Offset of each layer's router scalars, likewise; a layer without them takes none."""
        counts = [len(ROUTER_SCALARS) * spec.scalars for spec in self.layers]
        return [0, *np.cumsum(counts, dtype=np.int64).tolist()]

    @property
    def ids_bytes(self) -> int:
        return self.id_offsets[-1]

    @property
    def num_slots(self) -> int:
        return self.slot_offsets[-1]

    @property
    def num_scalars(self) -> int:
        return self.scalar_offsets[-1]

    def pack(self, ids_by_layer: Iterable[np.ndarray]) -> np.ndarray:
        """Join per-layer ids [T, K] into rows uint8 [T, ids_bytes].

        In a layer that can have empty slots, -1 and the layer's `none_id` mean "none".

        Raises ValueError where a layer has another number of slots, ids that are no integers, or an
        id that it lacks.
        """
        pairs = zip(self.layers, ids_by_layer, strict=True)
        return np.concatenate([_packed(spec, ids_TK) for spec, ids_TK in pairs], axis=1)

    def layer_ids(self, rows_TB: np.ndarray, index: int) -> np.ndarray:
        """Contiguous ids [T, K] of the `index`-th layer from rows uint8 [T, ids_bytes]."""
        spec = self.layers[index]
        start, stop = self.id_offsets[index : index + 2]
        return np.ascontiguousarray(rows_TB[:, start:stop]).view(spec.dtype)


def _packed(spec: LayerSpec, ids_TK: np.ndarray) -> np.ndarray:
    if ids_TK.ndim != 2 or ids_TK.shape[1] != spec.top_k:
        raise ValueError(
            f"layer {spec.layer}: ids of shape {ids_TK.shape}, expected [T, {spec.top_k}]"
        )
    if ids_TK.dtype.kind not in "iu":
        raise ValueError(
            f"layer {spec.layer}: ids of type {ids_TK.dtype}; give integers, the experts' numbers"
        )
    given_TK = ids_TK
    if spec.none_id is not None:
        is_none_TK = (ids_TK == -1) | (ids_TK == spec.none_id)
        given_TK = ids_TK[~is_none_TK]
        ids_TK = np.where(is_none_TK, spec.none_id, ids_TK)
    if given_TK.size and (given_TK.min() < 0 or given_TK.max() >= spec.num_experts):
        raise ValueError(
            f"layer {spec.layer}: ids from {given_TK.min()} to {given_TK.max()}, "
            f"but there are {spec.num_experts} experts"
        )
    return np.ascontiguousarray(ids_TK, dtype=spec.dtype).view(np.uint8)
