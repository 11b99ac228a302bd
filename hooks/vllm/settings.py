"""What the environment asks the plugin for; it is the one thing every process of an engine sees."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from moe_probe.errors import UsageError
from moe_probe.trace import Capture

_TRUE, _FALSE = ("1", "true", "yes", "on"), ("", "0", "false", "no", "off")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The plugin's settings."""

    path: Path
    """MOE_PROBE_TRACE: the trace directory."""
    capture: Capture = Capture.IDS
    """MOE_PROBE_CAPTURE: counts, ids, or weights."""
    keeps_tokens: bool = False
    """MOE_PROBE_TOKENS: whether the vocabulary ids of live traffic are stored."""
    max_bytes: int | None = None
    """MOE_PROBE_MAX_GB: routing rows are kept up to this size, then counts only."""
    is_evaluation: bool = False
    """MOE_PROBE_EVALUATION: `moe-probe record` drives this engine and says when to begin."""

    @classmethod
    def from_environment(cls) -> Self:
        """Read them; raises UsageError where a value means nothing."""
        gigabytes = os.environ.get("MOE_PROBE_MAX_GB", "")
        capture = os.environ.get("MOE_PROBE_CAPTURE") or "ids"
        if capture not in tuple(Capture):
            raise UsageError(f"MOE_PROBE_CAPTURE is {capture!r}. Use {', '.join(Capture)}.")
        try:
            max_bytes = int(float(gigabytes) * 1e9) if gigabytes else None
        except (ValueError, OverflowError) as error:
            raise UsageError(f"MOE_PROBE_MAX_GB is {gigabytes!r}, not a number.") from error
        return cls(
            path=trace_path(),
            capture=Capture(capture),
            keeps_tokens=_switch("MOE_PROBE_TOKENS"),
            max_bytes=max_bytes,
            is_evaluation=_switch("MOE_PROBE_EVALUATION"),
        )


def trace_path() -> Path:
    """MOE_PROBE_TRACE, whatever else is set."""
    return Path(os.environ["MOE_PROBE_TRACE"]).absolute()


def _switch(name: str) -> bool:
    value = os.environ.get(name, "").lower()
    if value not in _TRUE + _FALSE:
        raise UsageError(f"{name} is {value!r}. Use 1 or 0.")
    return value in _TRUE
