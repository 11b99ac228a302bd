"""A trace, analysed: one pass over its layers, then tables made of what that left.

Shape suffixes: S groups (task, subject, area), N experts of a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from moe_probe.analysis.accumulators.base import LayerAccumulator
from moe_probe.analysis.accumulators.counts import Counts
from moe_probe.analysis.accumulators.documents import (
    DocumentCounts,
    cluster_tokens,
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
)
from moe_probe.analysis.accumulators.tables import counts_from_tables
from moe_probe.analysis.accumulators.weights import Confidence, WeightSums
from moe_probe.analysis.kernels import kernels_for
from moe_probe.analysis.layer_state import (
    LayerState,
    LayerTables,
    Resampling,
    finish_layer,
    resampling_of,
)
from moe_probe.analysis.passes import PassTable
from moe_probe.analysis.quality import Check
from moe_probe.analysis.quality.suite import Evidence
from moe_probe.analysis.rules import Rule, default_rule
from moe_probe.analysis.scan import (
    Accumulator,
    Progress,
    chunks,
    default_threads,
    scan_layers,
)
from moe_probe.analysis.settings import Settings
from moe_probe.analysis.source import Source
from moe_probe.analysis.statistics.clusters import poisson_weights
from moe_probe.analysis.statistics.pass_null import PassNull
from moe_probe.trace import Capture, LayerSpec, Trace, open_trace

_COMPARED = (Rule.UNIQUE, Rule.QUESTION, Rule.DECISION, Rule.NO_TEMPLATE)


@dataclass(frozen=True)
class Sums:
    """What one pass over a trace leaves."""

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
        return self.trace.run.get("slot_order") != "unknown"

    @property
    def specs(self) -> dict[int, LayerSpec]:
        return self.counts.layers

    def by_group(self, layer: int) -> tuple[np.ndarray, np.ndarray]:
        """Selections int64 [S, N] and tokens int64 [S] of one layer."""
        return self.counts.by_group(layer)


def gather(
    trace: Trace | str | Path,
    settings: Settings | None = None,
    *,
    progress: Progress | None = None,
    kernels: ModuleType | None = None,
) -> Sums:
    """Scan a trace once, a few layers at a time, and keep what metrics need.

    Memory does not grow with the trace: tables with a row per document exist for a few layers only
    and have `index.MAX_CLUSTERS` rows at most.

    Args:
        trace: The trace, or where it lies.
        settings: What to count; the trace's default rule if None.
        progress: Told after every group of layers.
        kernels: The inner loops; by the trace's size if None.

    Raises:
        TraceError: the trace is damaged, or does not have what the rule needs.
        UsageError: the trace does not say what the order needs.
    """
    opened = trace if isinstance(trace, Trace) else open_trace(trace)
    chosen = settings or Settings(rule=default_rule(opened))
    if opened.capture is Capture.COUNTS or not opened.layers:
        return _from_tables(opened, chosen)
    source = Source(opened)
    loops = kernels or kernels_for(source.num_selections)
    state = DefaultScan(source, chosen, loops)
    evidence = Evidence(opened, source, state.counts_by(Rule.RAW))
    threads = chosen.threads or default_threads()
    layers = list(source.layers)
    done: dict[int, LayerState] = {}

    def take(some: Sequence[int]) -> dict[int, LayerState]:
        tables = state.document_tables(some)
        scan_layers(source, state.accumulators(evidence, tables), some, loops)
        return {layer: state.finish(tables, layer) for layer in some}

    # Layers are worked on side by side; libraries that start threads of their own get in the way.
    with threadpool_limits(1), ThreadPoolExecutor(threads) as pool:
        for finished in pool.map(take, chunks(layers, threads, state.table_bytes)):
            done |= finished
            if progress:
                progress(len(done), len(layers))
    return state.sums(evidence.checks(), done)


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
        self.tokens_C = cluster_tokens(source, settings.rule)
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
            pass_null=None if self.passes is None else PassNull(self.passes.by_stream()),
            layers=layers,
            **named,
        )


def subject_names(groups: Sequence[tuple[str, str, str]]) -> tuple[str, ...]:
    """Name each (task, subject, area) by its subject, or task, or both where that is not enough."""
    names = [subject or task for task, subject, _ in groups]
    if len(set(names)) < len(names):
        names = [f"{task}/{subject}" for task, subject, _ in groups]
    if len(set(names)) < len(names):
        names = ["/".join(group) for group in groups]
    return tuple(names)


def _from_tables(trace: Trace, settings: Settings) -> Sums:
    evidence = Evidence(trace, None)
    counts = counts_from_tables(trace, settings.rule)
    groups = counts.axes.groups
    return Sums(
        trace=trace,
        settings=settings,
        subjects=subject_names(groups),
        areas=tuple(area for _, _, area in groups),
        documents_S=np.zeros(len(groups), np.int64),
        counts=counts,
        by_rule={},
        checks=evidence.checks(),
    )
