"""Metrics that no report has, since each reads the trace once more: one function each.

All take a trace, or where it lies, and return a DataFrame whose columns are described where it is
made, and whose `.attrs["moe_probe"]` says what was counted. Import them from `moe_probe.analysis`.
"""
