"""Stored rows that look like a fault, counted by layer and by what is odd about them. Additive.

Shape suffixes: L layers, F sorts of faults.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from moe_probe.analysis.accumulators import files
from moe_probe.trace import LayerSpec


class Faults:
    """Rows looked at in each layer, and those of each sort of fault.

    Args:
        layers: The layers to look at, by the model's own index.
    """

    kind: str
    """Name in files."""
    sorts: int
    """F."""
    lookahead = False

    def __init__(self, layers: Mapping[int, LayerSpec]) -> None:
        self.layers = dict(layers)
        self.rows_L = np.zeros(len(layers), np.int64)
        self.faults_LF = np.zeros((len(layers), self.sorts), np.int64)

    def note(self, layer: int, rows: int, faults: Sequence[int]) -> None:
        """Add what was found in some rows of a layer; others may be added at the same time."""
        place = list(self.layers).index(layer)
        self.rows_L[place] += rows
        self.faults_LF[place] += faults

    def merge(self, other: Self) -> None:
        """Add what another shard saw; raises ValueError if its layers or settings differ."""
        if (other.layers, other.settings()) != (self.layers, self.settings()):
            raise ValueError(f"{self.kind} of different layers or settings cannot be merged")
        self.rows_L += other.rows_L
        self.faults_LF += other.faults_LF

    def settings(self) -> dict[str, Any]:
        """What `__init__` takes besides the layers."""
        return {}

    def save(self, path: Path) -> None:
        """Write a file that `load` reads; numpy's own format, compressed, without pickle."""
        specs = [spec.to_json() for spec in self.layers.values()]
        arrays = {"rows_L": self.rows_L, "faults_LF": self.faults_LF}
        files.write(path, self.kind, {"layers": specs, "settings": self.settings()}, arrays)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote; raises TraceError for anything else."""
        with files.reading(path, cls.kind) as (header, arrays):
            self = cls(files.layers_of(header), **header["settings"])
            self.rows_L, self.faults_LF = arrays["rows_L"], arrays["faults_LF"]
            return self
