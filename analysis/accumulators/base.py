"""What all accumulators have in common: per layer some arrays that rows add to and shards merge.

Shape suffixes: G strata, S groups (task, subject, area), C clusters.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, Self

import numpy as np

from moe_probe.analysis.accumulators import files
from moe_probe.analysis.kernels.tables import Tables
from moe_probe.analysis.reading.index import TraceIndex
from moe_probe.analysis.reading.rules import Rule
from moe_probe.analysis.reading.source import Rows
from moe_probe.trace import SEGMENTS, LayerSpec
from moe_probe.trace.counting import Stratum

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Axes:
    """What the rows of tables stand for: shards of a run may know different ones."""

    groups: tuple[tuple[str, str, str], ...] = ()
    """(task, subject, area)."""
    clusters: tuple[str, ...] = ()
    """Keys of the documents."""

    @classmethod
    def of(cls, index: TraceIndex, *, clusters: bool) -> Axes:
        return cls(index.groups, index.clusters.keys if clusters else ())

    @cached_property
    def strata(self) -> tuple[Stratum, ...]:
        """Every group's stretches: stratum = group * 5 + segment."""
        return tuple(Stratum(*group, segment) for group in self.groups for segment in SEGMENTS)

    def joined(self, other: Axes) -> Axes:
        """All of both, those of `self` first."""
        return Axes(
            tuple(dict.fromkeys((*self.groups, *other.groups))),
            tuple(dict.fromkeys((*self.clusters, *other.clusters))),
        )

    def places(self, whole: Axes) -> dict[str, np.ndarray]:
        """Where each row of a table stands in a table of `whole`, by the axis's letter."""
        group_of = {group: place for place, group in enumerate(whole.groups)}
        cluster_of = {cluster: place for place, cluster in enumerate(whole.clusters)}
        places_S = np.array([group_of[group] for group in self.groups], np.int64)
        segments = np.arange(len(SEGMENTS))
        return {
            "S": places_S,
            "G": (places_S[:, None] * len(SEGMENTS) + segments).ravel(),
            "C": np.array([cluster_of[cluster] for cluster in self.clusters], np.int64),
        }

    def length(self, axis: str) -> int:
        """Number of rows of a table along an axis."""
        groups = len(self.groups)
        return {"S": groups, "G": groups * len(SEGMENTS), "C": len(self.clusters)}[axis]


class LayerAccumulator:
    """Arrays of every layer. Subclasses say which, and how rows add to them.

    The last letter of an array's name that is S, G or C and comes first in its shape suffix, as in
    `counts_GN`, says that its rows are groups, strata or clusters; merging brings rows together
    that stand for the same. All arrays add up, unless a subclass says otherwise in `combine`.

    Args:
        layers: The layers to fill, by the model's own index.
        rule: How often each token counts.
        index: Of the trace whose rows are added.
    """

    kind: str
    """Name in files."""
    per_cluster = False
    weights = False
    """Whether gate weights are read."""
    lookahead = False
    """Whether a layer's update also reads the next layer."""

    def __init__(self, layers: Mapping[int, LayerSpec], rule: Rule, index: TraceIndex) -> None:
        self.layers = dict(layers)
        self.rule = rule
        self.axes = Axes.of(index, clusters=self.per_cluster)
        self.arrays = {layer: self.empty(spec) for layer, spec in self.layers.items()}

    def empty(self, spec: LayerSpec) -> Arrays:
        """Return a layer's arrays before anything is added."""
        raise NotImplementedError

    def add(self, rows: Rows, layer: int, kernels: ModuleType) -> None:
        """Add one layer of a part; different layers may be added at the same time."""
        raise NotImplementedError

    def combine(self, name: str, mine: np.ndarray, other: np.ndarray) -> np.ndarray:
        """Join two arrays whose rows stand for the same."""
        return np.asarray(mine + other)

    def merge(self, other: Self) -> None:
        """Add what another shard counted.

        Raises ValueError if its layers, rule or settings differ.
        """
        if (other.layers, other.rule) != (self.layers, self.rule):
            raise ValueError(f"{self.kind} of different layers or rules cannot be merged")
        if other.settings() != self.settings():
            raise ValueError(
                f"{self.kind} with {self.settings()} and with {other.settings()} cannot be merged"
            )
        whole = self.axes.joined(other.axes)
        for layer, arrays in self.arrays.items():
            mine = spread(arrays, self.axes, whole)
            theirs = spread(other.arrays[layer], other.axes, whole)
            self.arrays[layer] = self.joined(mine, theirs)
        self.axes = whole

    def joined(self, mine: Arrays, theirs: Arrays) -> Arrays:
        """Join one layer's arrays, whose rows stand for the same."""
        return {name: self.combine(name, array, theirs[name]) for name, array in mine.items()}

    def save(self, path: Path) -> None:
        """Write a file that `load` reads; numpy's own format, compressed, without pickle."""
        header = {
            "rule": str(self.rule),
            "layers": [spec.to_json() for spec in self.layers.values()],
            "groups": self.axes.groups,
            "clusters": self.axes.clusters,
            **self.settings(),
        }
        arrays = {
            f"{layer}/{name}": array
            for layer, arrays in self.arrays.items()
            for name, array in arrays.items()
        }
        files.write(path, self.kind, header, arrays)

    def settings(self) -> dict[str, Any]:
        """What else a file needs to say; `restore` gets it back."""
        return {}

    def restore(self, header: dict[str, Any]) -> None:
        """Take back `settings`."""

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote; raises TraceError for anything else."""
        with files.reading(path, cls.kind) as (header, arrays):
            self = cls.__new__(cls)
            self.layers = files.layers_of(header)
            self.rule = Rule(header["rule"])
            groups = tuple((task, subject, area) for task, subject, area in header["groups"])
            self.axes = Axes(groups, tuple(header["clusters"]))
            self.restore(header)
            self.arrays = {layer: {} for layer in self.layers}
            for key, array in arrays.items():
                layer, name = key.split("/")
                self.arrays[int(layer)][name] = array
            return self


class TableAccumulator(LayerAccumulator):
    """One that fills a table of `kernels.tables`, in one pass with others of its rule."""

    field: str
    """Name of the table in `Tables`."""

    def table(self, rows: Rows, layer: int) -> Any:
        """Return what the kernels add one layer of a part to."""
        raise NotImplementedError

    def add(self, rows: Rows, layer: int, kernels: ModuleType) -> None:
        fill([self], rows, layer, kernels)


def fill(
    accumulators: Iterable[TableAccumulator], rows: Rows, layer: int, kernels: ModuleType
) -> None:
    """Add one layer of a part to accumulators, in as few passes as there are different rules."""

    passes: list[tuple[Rule, Tables]] = []
    for accumulator in accumulators:
        field, rule = accumulator.field, accumulator.rule
        free = (t for r, t in passes if r is rule and getattr(t, field) is None)
        tables = next(free, None)
        if tables is None:
            tables = Tables(accumulator.layers[layer].num_experts)
            passes.append((rule, tables))
        setattr(tables, field, accumulator.table(rows, layer))
    for rule, tables in passes:
        kernels.fill(tables, rows.topk_ids(layer), rows.pieces(rule))


def spread(arrays: Arrays, axes: Axes, whole: Axes) -> Arrays:
    """Bring tables' rows to where they stand in tables of `whole`; rows of others are 0."""
    if axes == whole:
        return arrays
    places = axes.places(whole)
    moved = {}
    for name, array in arrays.items():
        axis = name.rsplit("_", 1)[-1][:1]
        if axis in places:
            table = np.zeros((whole.length(axis), *array.shape[1:]), array.dtype)
            table[places[axis]] = array
            moved[name] = table
        else:
            moved[name] = array
    return moved
