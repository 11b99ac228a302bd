"""Capture inside the vLLM engine: a general plugin, inert unless MOE_PROBE_TRACE is set."""

from __future__ import annotations

import os


def register() -> None:
    """Entry point of vLLM's general plugins, called in every process of an engine."""
    if not os.environ.get("MOE_PROBE_TRACE"):
        return
