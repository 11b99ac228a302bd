"""moe-probe: how a Mixture-of-Experts language model really uses its experts.

Importing this package imports nothing heavy and changes nothing; the names below load on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moe_probe.recording.stages import open_trace
    from moe_probe.trace import Trace, TraceWriter

__all__ = ["Trace", "TraceWriter", "__version__", "open_trace"]

__version__ = "0.1.0"

_MODULES = {
    "Trace": "moe_probe.trace",
    "TraceWriter": "moe_probe.trace",
    "open_trace": "moe_probe.recording.stages",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'moe_probe' has no attribute {name!r}")
