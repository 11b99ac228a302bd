"""Comparison of traces: loads by expert, agreement token by token, and accuracy.

`compare` scans the traces and returns a `Comparison`, whose tables are DataFrames. The first trace
is the reference of all others.
"""

from __future__ import annotations

from moe_probe.analysis.comparison.results import TABLES, Comparison, compare
from moe_probe.analysis.comparison.sides import CompareSettings

__all__ = ["TABLES", "CompareSettings", "Comparison", "compare"]
