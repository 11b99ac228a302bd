"""The inner loops of the scan, in two forms with the same arguments and results."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

COMPILE_FROM = 8_000_000
"""Selections from which compiled loops pay for loading the compiler."""


def kernels_for(selections: int) -> ModuleType:
    """Return `plain` for small traces, else `compiled`: the first call of which compiles them."""
    name = "compiled" if selections >= COMPILE_FROM else "plain"
    return import_module(f"moe_probe.analysis.kernels.{name}")
