"""Metrics that no report has, since each reads the trace once more: one function each.

All take a trace, or where it lies, and return a DataFrame whose columns are described where it is
made. Import them from `moe_probe.analysis`.
"""
