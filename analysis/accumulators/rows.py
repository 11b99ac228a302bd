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
        place, spec = self._place[layer], self.layers[layer]
        none_id = -1 if spec.none_id is None else spec.none_id
        self.rows_L[place] += len(rows)
        self._anomalies_L4[place] += kernels.inspect_rows(
            rows.topk_ids(layer), spec.num_experts, none_id
        )

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
