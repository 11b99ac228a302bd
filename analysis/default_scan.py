"""Which accumulators the scan behind a report fills, and what is kept of them.

Shape suffixes: S groups (task, subject, area), G segments, C clusters, D documents, B replicates,
P forward passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np

from moe_probe.analysis.accumulators.base import LayerAccumulator
from moe_probe.analysis.accumulators.counts import Counts
from moe_probe.analysis.accumulators.documents import (
    DocumentCounts,
    segment_tokens,
    smallest_type,
)
from moe_probe.analysis.accumulators.gaps import Gaps
from moe_probe.analysis.accumulators.locality import BatchStats, Overlaps
from moe_probe.analysis.accumulators.pass_experts import PassExperts
from moe_probe.analysis.accumulators.structure import (
    FlowCounts,
    PairCounts,
    PositionCounts,
    SlotCounts,
    position_tokens,
)
from moe_probe.analysis.accumulators.weights import Confidence, WeightSums
from moe_probe.analysis.layer_state import (
    LayerState,
    LayerTables,
    Resampling,
    finish_layer,
    resampling_of,
)
from moe_probe.analysis.metrics.positions import tokens_apart
from moe_probe.analysis.quality import Check
from moe_probe.analysis.quality.suite import Evidence
from moe_probe.analysis.reading.index import subject_names
from moe_probe.analysis.reading.passes import PassTable
from moe_probe.analysis.reading.rules import Rule
from moe_probe.analysis.reading.source import Source
from moe_probe.analysis.scan import Accumulator
from moe_probe.analysis.settings import Settings
from moe_probe.analysis.statistics.clusters import poisson_weights
from moe_probe.analysis.statistics.pass_null import PassNull
from moe_probe.analysis.sums import Sums
from moe_probe.trace import Capture

_COMPARED = (Rule.RAW, Rule.UNIQUE, Rule.QUESTION, Rule.DECISION, Rule.NO_TEMPLATE)


class DefaultScan:
    """Accumulators of all layers, and those of the layers at hand."""

    def __init__(self, source: Source, settings: Settings, kernels: ModuleType) -> None:
        self.source, self.settings, self.kernels = source, settings, kernels
        facts: Any = (source.layers, settings.rule, source.index)
        self.counts = Counts(*facts)
        # Rules that count the same rows share one table.
        self.by_rule: dict[Rule, Counts] = {}
        for rule in _COMPARED:
            known = rule is not Rule.NO_TEMPLATE or source.has_token_ids
            if rule is not settings.rule and known:
                own = Counts(source.layers, rule, source.index)
                self.by_rule[rule] = self.counts_by(rule) or own
        has_weights = source.trace.capture is Capture.WEIGHTS
        self.named: dict[str, LayerAccumulator] = {
            "slots": SlotCounts(*facts),
            "pairs": PairCounts(*facts),
            "flows": FlowCounts(*facts),
            "positions": PositionCounts(*facts),
            "overlaps": Overlaps(*facts, other_tokens=source.has_token_ids),
            "batches": BatchStats(*facts),
        }
        if has_weights:
            self.named |= {"weights": WeightSums(*facts), "confidence": Confidence(*facts)}
        self.segment_tokens_CG = segment_tokens(source, settings.rule)
        self.tokens_C = self.segment_tokens_CG.sum(axis=1)
        self.most = int(self.tokens_C.max(initial=0))
        self.counts_once = settings.rule is not Rule.RAW or not source.has_repeated_rows
        self.passes: PassTable | None = None
        if settings.in_passes and self.counts_once:
            self.passes = PassTable.of(source, settings.rule)
        weights_BC = poisson_weights(source.index.clusters.keys, settings.replicates)
        clusters = source.index.clusters
        self.resampling: Resampling = resampling_of(clusters, self.tokens_C, weights_BC, settings)

    @property
    def everywhere(self) -> list[LayerAccumulator]:
        """Each once."""
        found = [self.counts, *self.by_rule.values(), *self.named.values()]
        return list({id(accumulator): accumulator for accumulator in found}.values())

    def counts_by(self, rule: Rule) -> Counts | None:
        """Counts made already of the rows that a rule counts, if there are any."""
        made = (self.counts, *self.by_rule.values())
        return next((c for c in made if self.source.counts_alike(c.rule, rule)), None)

    def document_tables(self, layers: Sequence[int]) -> LayerTables:
        specs = {layer: self.source.layers[layer] for layer in layers}
        facts: Any = (specs, self.settings.rule, self.source.index)
        documents = DocumentCounts(*facts, most=self.most)
        if not self.counts_once:
            return LayerTables(documents)
        gaps = Gaps(*facts, most=self.most, windows=self.settings.of_tokens.windows)
        if self.passes is None:
            return LayerTables(documents, gaps)
        return LayerTables(documents, gaps, PassExperts(*facts, table=self.passes))

    @property
    def table_bytes(self) -> int:
        """What `document_tables` take per layer, at most."""
        experts = max(spec.num_experts for spec in self.source.layers.values())
        entry = np.dtype(smallest_type(self.most + 1)).itemsize
        passes = 0 if self.passes is None else len(self.passes.key_P)
        return (
            3 * entry * experts * len(self.source.index.clusters) + passes * -(-experts // 64) * 8
        )

    def accumulators(self, evidence: Evidence, tables: LayerTables) -> list[Accumulator]:
        """All that one group of layers fills."""
        tallies = [table for table in tables if table is not None]
        return [*evidence.accumulators, *self.everywhere, *tallies]

    def finish(self, tables: LayerTables, layer: int) -> LayerState:
        clusters = self.source.index.clusters
        more = (self.resampling, self.settings, self.kernels)
        return finish_layer(tables, layer, clusters, *more)

    def sums(self, checks: list[Check], layers: dict[int, LayerState]) -> Sums:
        clusters = self.source.index.clusters
        group_D = clusters.group_C[self.resampling.document_D]
        number_D = clusters.documents_C[self.resampling.document_D]
        groups = self.source.index.groups
        named: dict[str, Any] = self.named
        return Sums(
            trace=self.source.trace,
            settings=self.settings,
            subjects=subject_names(groups),
            areas=tuple(area for _, _, area in groups),
            documents_S=np.bincount(group_D, number_D, len(groups)).astype(np.int64),
            counts=self.counts,
            by_rule=self.by_rule,
            checks=checks,
            segment_tokens_CG=self.segment_tokens_CG,
            is_prefix_C=self.source.index.clusters.is_prefix_C,
            positions_apart_B=tokens_apart(position_tokens(self.source, self.settings.rule)),
            pass_null=None if self.passes is None else PassNull(self.passes.by_stream()),
            layers=layers,
            **named,
        )
