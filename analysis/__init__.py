"""Analysis of traces: one scan fills accumulators; metrics, tables and reports read those.

The names below load on first use; the scan itself is `moe_probe.analysis.scan.scan`. Nothing here
imports torch or `moe_probe.hooks`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moe_probe.analysis.accumulators.counts import Counts, LayerCounts
    from moe_probe.analysis.accumulators.rows import RowFaults
    from moe_probe.analysis.quality import Check, check_trace
    from moe_probe.analysis.report import write_report
    from moe_probe.analysis.rules import Rule
    from moe_probe.analysis.scan import Rows, count
    from moe_probe.analysis.tables import experts_table, layers_table, quality_table

__all__ = [
    "Check",
    "Counts",
    "LayerCounts",
    "RowFaults",
    "Rows",
    "Rule",
    "check_trace",
    "count",
    "experts_table",
    "layers_table",
    "quality_table",
    "write_report",
]

_MODULES = {
    "Check": "quality",
    "Counts": "accumulators.counts",
    "LayerCounts": "accumulators.counts",
    "RowFaults": "accumulators.rows",
    "Rows": "scan",
    "Rule": "rules",
    "check_trace": "quality",
    "count": "scan",
    "experts_table": "tables",
    "layers_table": "tables",
    "quality_table": "tables",
    "write_report": "report",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
