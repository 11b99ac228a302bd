"""The inner loops of the scan in numpy, for traces too small to wait for a compiler.

Same functions, same arguments and same results as `compiled`; they add to arrays in place.
"""

from moe_probe.analysis.kernels.plain.counting import count_flows, count_rows, inspect_rows
from moe_probe.analysis.kernels.plain.filling import fill
from moe_probe.analysis.kernels.plain.idle import (
    add_windows,
    join_documents,
    join_longest,
    longest_absence,
)
from moe_probe.analysis.kernels.plain.overlaps import add_batch, count_batches

__all__ = [
    "add_batch",
    "add_windows",
    "count_batches",
    "count_flows",
    "count_rows",
    "fill",
    "inspect_rows",
    "join_documents",
    "join_longest",
    "longest_absence",
]
