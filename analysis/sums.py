"""What one scan of a trace leaves, from which all tables are made.

Shape suffixes: S groups (task, subject, area), N experts of a layer, B octaves of positions,
C clusters (documents and prefixes), G segments.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from moe_probe.analysis.accumulators.counts import Counts
from moe_probe.analysis.accumulators.locality import BatchStats, Overlaps
from moe_probe.analysis.accumulators.structure import (
    FlowCounts,
    PairCounts,
    PositionCounts,
    SlotCounts,
)
from moe_probe.analysis.accumulators.weights import Confidence, WeightSums
from moe_probe.analysis.layer_state import LayerState
from moe_probe.analysis.quality import Check
from moe_probe.analysis.reading.rules import Rule
from moe_probe.analysis.settings import Settings
from moe_probe.analysis.statistics.pass_null import PassNull
from moe_probe.analysis.statistics.set_sizes import SetSizes
from moe_probe.trace import LayerSpec, Trace


@dataclass(frozen=True)
class Sums:
    """Counts and sums of all layers, and the state of each after the scan."""

    trace: Trace
    settings: Settings
    subjects: tuple[str, ...]
    """Names of the groups: the subject, or the task where it has none; distinct."""
    areas: tuple[str, ...]
    documents_S: np.ndarray
    """Documents of each group that have counted tokens, prefixes left out."""
    counts: Counts
    by_rule: dict[Rule, Counts]
    """Counts by other rules, for comparison."""
    checks: list[Check]
    slots: SlotCounts | None = None
    """This and all below only where the trace has rows."""
    pairs: PairCounts | None = None
    flows: FlowCounts | None = None
    positions: PositionCounts | None = None
    positions_apart_B: np.ndarray | None = None
    """How differently documents are at each octave of positions: `tokens_apart`."""
    segment_tokens_CG: np.ndarray | None = None
    """Tokens of each document and prefix by segment."""
    is_prefix_C: np.ndarray | None = None
    """Which of these are prefixes."""
    overlaps: Overlaps | None = None
    batches: BatchStats | None = None
    weights: WeightSums | None = None
    confidence: Confidence | None = None
    pass_null: PassNull | None = None
    """What chance gives in forward passes, if idle runs are counted in them."""
    layers: dict[int, LayerState] = field(default_factory=dict)

    @property
    def has_ranks(self) -> bool:
        """Whether the trace knows which slot a token's first choice is in."""
        return bool(self.trace.run.get("slot_order", "unknown") != "unknown")

    @property
    def specs(self) -> dict[int, LayerSpec]:
        return self.counts.layers

    def by_group(self, layer: int) -> tuple[np.ndarray, np.ndarray]:
        """Selections int64 [S, N] and tokens int64 [S] of one layer."""
        return self.counts.by_group(layer)

    def set_sizes(self, layer: int) -> SetSizes:
        """How many experts a token of one layer selects: what all nulls of the layer are of."""
        pairs_NN = None if self.pairs is None else self.pairs.arrays[layer]["pairs_NN"]
        return self.counts.layer(layer).set_sizes(pairs_NN)
