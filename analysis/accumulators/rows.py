"""What the quality checks need of every stored row. Additive.

Rows are looked at as they are stored, whatever the counting rule.

Shape suffixes: T tokens of a block, K slots, L layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import NamedTuple, Self

import numpy as np

from moe_probe.analysis.source import Rows
from moe_probe.trace import LayerSpec


class Anomalies(NamedTuple):
    """Rows of one layer that no router with distinct top-k writes."""

    duplicated: int
    """Rows that name an expert twice."""
    zero: int
    """Rows of zeros only."""
    ordered: int
    """Rows that read 0, 1, ..., k-1."""
    out_of_range: int
    """Rows with an id that the layer lacks and that does not mean an empty slot."""


class RowFaults:
    """Stored rows of each layer that look like a fault.

    Args:
        layers: The layers to look at, by the model's own index.
    """

    weights = False
    lookahead = False

    def __init__(self, layers: Mapping[int, LayerSpec]) -> None:
        self.layers = dict(layers)
        self.rows_L = np.zeros(len(layers), np.int64)
        self._anomalies_L4 = np.zeros((len(layers), len(Anomalies._fields)), np.int64)
        self._place = {layer: place for place, layer in enumerate(layers)}

    def add(self, rows: Rows, layer: int, kernels: ModuleType) -> None:
        """Look at one layer of a part."""
        place = self._place[layer]
        self.rows_L[place] += len(rows)
        self._anomalies_L4[place] += _inspect(rows.topk_ids(layer), self.layers[layer])

    def merge(self, other: Self) -> None:
        """Add what another shard saw; raises ValueError if its layers differ."""
        if other.layers != self.layers:
            raise ValueError("rows of different layers cannot be merged")
        self.rows_L += other.rows_L
        self._anomalies_L4 += other._anomalies_L4

    @property
    def num_rows(self) -> int:
        """Rows looked at in each layer."""
        return int(self.rows_L.max(initial=0))

    def by_layer(self) -> dict[int, Anomalies]:
        """Return what was found in each layer."""
        found = (Anomalies(*row) for row in self._anomalies_L4.tolist())
        return dict(zip(self.layers, found, strict=True))


def _inspect(ids_TK: np.ndarray, spec: LayerSpec) -> Anomalies:
    # Columns in contiguous memory: comparing all pairs of them is faster than sorting rows.
    ids_KT = np.ascontiguousarray(ids_TK.T)
    is_empty_KT = ids_KT == spec.none_id if spec.empty_slots else None
    twice_T = np.zeros(ids_KT.shape[1], bool)
    for first in range(spec.top_k):
        for second in range(first + 1, spec.top_k):
            equal_T = ids_KT[first] == ids_KT[second]
            twice_T |= equal_T if is_empty_KT is None else equal_T & ~is_empty_KT[first]
    foreign_KT = ids_KT >= spec.num_experts
    if is_empty_KT is not None:
        foreign_KT &= ~is_empty_KT
    return Anomalies(
        duplicated=int(twice_T.sum()),
        zero=int((ids_KT == 0).all(axis=0).sum()),
        ordered=int((ids_KT == np.arange(spec.top_k)[:, None]).all(axis=0).sum()),
        out_of_range=int(foreign_KT.any(axis=0).sum()),
    )
