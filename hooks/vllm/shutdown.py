"""Time for the workers to close their traces when a server is stopped.

By default vLLM kills an engine's processes in the moment it asks them to end. What reached the
writer survives that, but the trace then has to be recovered, and what was still on its way is lost.
"""

from __future__ import annotations

from typing import Any

_GRACE_SECONDS = 15.0


def install() -> None:
    """Make the process that owns an engine wait for its processes to end by themselves.

    Raises ImportError or AttributeError where this vLLM has no such owner.
    """
    from vllm.v1.engine.utils import CoreEngineProcManager

    if getattr(CoreEngineProcManager, "moe_probe_is_installed", False):
        return
    shutdown = CoreEngineProcManager.shutdown

    def shutdown_with_grace(self: Any, timeout: float | None = None) -> Any:
        return shutdown(self, timeout=max(timeout or 0.0, _GRACE_SECONDS))

    CoreEngineProcManager.shutdown = shutdown_with_grace
    CoreEngineProcManager.moe_probe_is_installed = True
