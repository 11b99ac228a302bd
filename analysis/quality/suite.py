"""Every check that applies to a trace. Each answers one fault seen in a real recorder."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path

from moe_probe.analysis.accumulators.counts import Counts
from moe_probe.analysis.accumulators.repeats import Repeats
from moe_probe.analysis.accumulators.row_sample import RowSample
from moe_probe.analysis.accumulators.rows import RowFaults
from moe_probe.analysis.accumulators.tables import counts_from_tables
from moe_probe.analysis.accumulators.weight_faults import WeightFaults
from moe_probe.analysis.quality.loads import count_bounds, expert_zero, experts_in_use
from moe_probe.analysis.quality.outcome import Check, Status
from moe_probe.analysis.quality.repeats import (
    repeated_prompts,
    separate_writers,
    unchanged_scores,
)
from moe_probe.analysis.quality.routes import (
    layers_recorded_once,
    lowest_everywhere,
    routes_of_own,
)
from moe_probe.analysis.quality.rows import (
    none_above_one_slot,
    none_allowed,
    ordered_allowed,
    row_check,
    rows_alike,
    rows_per_sequence,
)
from moe_probe.analysis.quality.run_facts import (
    completeness,
    prefix_agreement,
    recomputed_ids,
    recorded_layers,
    recorded_top_k,
    replicates,
)
from moe_probe.analysis.quality.shifts import own_token
from moe_probe.analysis.quality.weights import weights_in_range
from moe_probe.analysis.reading.rules import Rule
from moe_probe.analysis.reading.source import Source
from moe_probe.analysis.scan import Accumulator, Progress, scan
from moe_probe.errors import TraceError
from moe_probe.trace import Capture, Trace, open_trace


class Evidence:
    """What the checks need to see of every row, as accumulators to fill in any scan.

    Args:
        trace: The trace.
        source: Its rows; None where it has none.
        raw: Counts by the rule `raw`, or by one that counts the same rows, which the same scan
            fills; made here if None.

    Raises:
        TraceError: the trace is of a model without routers.
    """

    def __init__(self, trace: Trace, source: Source | None, raw: Counts | None = None) -> None:
        if not trace.layers:
            raise TraceError(
                f"{trace.path} was recorded with --baseline: it has scores, in run.json and "
                "sequences/, and no routing. Give the trace of a model with experts."
            )
        self.trace = trace
        self.source = source
        self.faults: RowFaults | None = None
        self.weights: WeightFaults | None = None
        self.repeats: Repeats | None = None
        self.sample: RowSample | None = None
        if source is None:
            self.counts = counts_from_tables(trace, Rule.RAW)
        else:
            self.counts = raw or Counts(trace.layers, Rule.RAW, source.index)
            self._shares_counts = raw is not None
            self.faults = RowFaults(trace.layers)
            self.repeats = Repeats(trace.sequences, trace.layers)
            self.sample = RowSample(source)
            if trace.capture is Capture.WEIGHTS:
                descending = trace.run.get("slot_order") == "descending_weight"
                self.weights = WeightFaults(trace.layers, descending=descending)

    @property
    def accumulators(self) -> list[Accumulator]:
        """To be filled from all layers; none where the trace has no rows."""
        if self.source is None:
            return []
        counts = None if self._shares_counts else self.counts
        wanted = (counts, self.faults, self.weights, self.repeats, self.sample)
        return [found for found in wanted if found is not None]

    def checks(self) -> list[Check]:
        """Run every check that applies to the trace, once the accumulators are filled."""
        trace, faults = self.trace, self.faults
        ordered = partial(ordered_allowed, are_alike=rows_alike(self.sample))
        return [
            completeness(trace),
            row_check("Q1", "an expert twice in one row", faults, "duplicated", none_allowed),
            row_check("Q2", "rows of zeros only", faults, "zero", none_above_one_slot),
            row_check("Q3", "rows that read 0, 1, 2, ...", faults, "ordered", ordered),
            row_check("Q4", "ids beyond the last expert", faults, "out_of_range", none_allowed),
            count_bounds(trace, self.counts, scanned=faults is not None),
            rows_per_sequence(trace, self.source),
            recorded_layers(trace),
            recorded_top_k(trace),
            weights_in_range(self.weights),
            recomputed_ids(),
            separate_writers(trace),
            replicates(trace),
            repeated_prompts(self.repeats),
            prefix_agreement(trace),
            expert_zero(self.counts.by_layer()),
            unchanged_scores(trace),
            lowest_everywhere(self.sample),
            own_token(trace, self.sample),
            routes_of_own(self.sample),
            layers_recorded_once(self.sample),
            experts_in_use(self.counts.by_layer()),
        ]


def check_trace(trace: Trace | str | Path, *, progress: Progress | None = None) -> list[Check]:
    """Run every check that applies to a trace.

    Args:
        trace: The trace, or where it lies.
        progress: Called with the number of layers done, and of all, after every group of layers.

    Raises:
        TraceError: the trace is damaged, or of a model without routers.
    """
    opened = open_trace(trace)
    source = None if opened.capture is Capture.COUNTS or not opened.layers else Source(opened)
    evidence = Evidence(opened, source)
    if source is not None:
        scan(source, evidence.accumulators, progress=progress)
    return evidence.checks()


def failures(checks: Iterable[Check]) -> list[Check]:
    """Return the checks that failed."""
    return [check for check in checks if check.status is Status.FAIL]
