"""Capture inside the vLLM engine: a general plugin, inert unless MOE_PROBE_TRACE is set."""

from __future__ import annotations

import logging
import os


def register() -> None:
    """Entry point of vLLM's general plugins, called in every process of an engine.

    Never raises: an exception here would end the engine.
    """
    if not os.environ.get("MOE_PROBE_TRACE"):
        return
    try:
        from moe_probe.hooks.vllm.scheduler import install as install_scheduler
        from moe_probe.hooks.vllm.shutdown import install as install_shutdown
        from moe_probe.hooks.vllm.worker import install as install_worker

        install_scheduler()
        install_shutdown()
        install_worker()
    except Exception:
        logging.getLogger("vllm.moe_probe").exception(
            "moe-probe does not fit this vLLM and records nothing."
        )
