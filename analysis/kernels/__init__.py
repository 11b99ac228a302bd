"""The inner loops of the scan, in two forms with the same arguments and results."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

COMPILE_FROM = 30_000_000
"""Selections from which compiling loops takes no longer than doing without."""
LOAD_FROM = 8_000_000
"""Selections from which loops that were compiled before pay for loading the compiler."""


def kernels_for(selections: int) -> ModuleType:
    """Return `plain` for small traces, else `compiled`: the first call of which compiles them.

    In between, `compiled` where the disk has loops that another trace needed.
    """
    name = "moe_probe.analysis.kernels"
    if selections < LOAD_FROM:
        return import_module(f"{name}.plain")
    compiled = import_module(f"{name}.compiled")
    if selections < COMPILE_FROM and not compiled.were_compiled():
        return import_module(f"{name}.plain")
    return compiled
