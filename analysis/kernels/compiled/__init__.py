"""The inner loops of the scan, compiled: one pass per table over rows that stay in the cache.

Arguments and results are those of `plain`, where they are described.
"""

from moe_probe.analysis.kernels.compiled.batches import count_batches
from moe_probe.analysis.kernels.compiled.counting import (
    count_flows,
    count_pairs,
    count_rows,
    count_slots,
    inspect_rows,
)
from moe_probe.analysis.kernels.compiled.idle import (
    join_documents,
    join_longest,
    longest_absence,
    trace_gaps,
)
from moe_probe.analysis.kernels.compiled.overlaps import count_overlaps

__all__ = [
    "count_batches",
    "count_flows",
    "count_overlaps",
    "count_pairs",
    "count_rows",
    "count_slots",
    "inspect_rows",
    "join_documents",
    "join_longest",
    "longest_absence",
    "trace_gaps",
]
