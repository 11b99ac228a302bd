"""moe-probe: how a Mixture-of-Experts language model really uses its experts.

Importing this package imports nothing heavy and changes nothing; the names below load on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moe_probe.trace import Trace, TraceWriter, open_trace

__all__ = ["Trace", "TraceWriter", "__version__", "open_trace"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in ("Trace", "TraceWriter", "open_trace"):
        return getattr(import_module("moe_probe.trace"), name)
    raise AttributeError(f"module 'moe_probe' has no attribute {name!r}")
