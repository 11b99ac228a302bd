"""Every check that applies to a trace. Each answers one fault seen in a real recorder."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from moe_probe.analysis.accumulators.counts import Counts
from moe_probe.analysis.accumulators.rows import RowFaults
from moe_probe.analysis.quality.loads import count_bounds, expert_zero
from moe_probe.analysis.quality.outcome import Check, Status
from moe_probe.analysis.quality.rows import (
    none_above_one_slot,
    none_allowed,
    ordered_allowed,
    row_check,
    rows_per_sequence,
)
from moe_probe.analysis.quality.run_facts import (
    completeness,
    prefix_agreement,
    recorded_layers,
    recorded_top_k,
    replicates,
)
from moe_probe.analysis.rules import Rule
from moe_probe.analysis.scan import Accumulator, count, scan
from moe_probe.errors import TraceError
from moe_probe.trace import Capture, Trace


def check_trace(trace: Trace, *, also: Sequence[Accumulator] = ()) -> list[Check]:
    """Run every check that applies to a trace, in one pass over its rows.

    Args:
        trace: The trace.
        also: Accumulators to fill in the same pass, where the trace has rows.

    Raises:
        TraceError: the trace is damaged, or of a model without routers.
    """
    if not trace.layers:
        raise TraceError(
            f"{trace.path} was recorded with --baseline: it has scores, in run.json and "
            "sequences/, and no routing. Give the trace of a model with experts."
        )
    faults: RowFaults | None = None
    if trace.capture is Capture.COUNTS:
        counts = count(trace, Rule.RAW)
    else:
        counts, faults = Counts(trace.layers, Rule.RAW), RowFaults(trace.layers)
        scan(trace, [counts, faults, *also])
    return [
        completeness(trace),
        row_check("Q1", "an expert twice in one row", faults, "duplicated", none_allowed),
        row_check("Q2", "rows of zeros only", faults, "zero", none_above_one_slot),
        row_check("Q3", "rows that read 0, 1, 2, ...", faults, "ordered", ordered_allowed),
        row_check("Q4", "ids beyond the last expert", faults, "out_of_range", none_allowed),
        count_bounds(trace, counts, scanned=faults is not None),
        rows_per_sequence(trace, faults),
        recorded_layers(trace),
        recorded_top_k(trace),
        replicates(trace),
        prefix_agreement(trace),
        expert_zero(counts.by_layer()),
    ]


def failures(checks: Iterable[Check]) -> list[Check]:
    """Return the checks that failed."""
    return [check for check in checks if check.status is Status.FAIL]
