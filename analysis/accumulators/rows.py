"""What the quality checks need of every stored row. Additive.

Rows are looked at as they are stored, whatever the counting rule.
"""

from __future__ import annotations

from types import ModuleType
from typing import NamedTuple

from moe_probe.analysis.accumulators.faults import Faults
from moe_probe.analysis.reading.source import Rows


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


class RowFaults(Faults):
    """Stored rows of each layer that look like a fault."""

    kind = "row_faults"
    sorts = len(Anomalies._fields)
    weights = False

    def add(self, rows: Rows, layer: int, kernels: ModuleType) -> None:
        """Look at one layer of a part."""
        spec = self.layers[layer]
        none_id = -1 if spec.none_id is None else spec.none_id
        found = kernels.inspect_rows(rows.topk_ids(layer), spec.num_experts, none_id)
        self.note(layer, len(rows), found)

    def by_layer(self) -> dict[int, Anomalies]:
        """Return what was found in each layer."""
        found = (Anomalies(*row) for row in self.faults_LF.tolist())
        return dict(zip(self.layers, found, strict=True))

    @property
    def num_rows(self) -> int:
        """Rows looked at in each layer."""
        return int(self.rows_L.max(initial=0))
