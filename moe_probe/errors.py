"""Errors the command line prints as one sentence, without a traceback.

    MoeProbeError            exit code 1
    ├── UsageError           exit code 2: what was asked for cannot be done as asked
    ├── TraceError           a trace that cannot be read or written
    └── CaptureError         routing that cannot be read, or was not read completely

Memory that runs out is one sentence and exit code 1 too. Anything else that reaches the command
line is a bug and keeps its traceback.
"""

from __future__ import annotations


class MoeProbeError(Exception):
    """A failure that a user can understand and act on; `str()` is the whole message."""

    exit_code = 1


class UsageError(MoeProbeError):
    """Arguments that do not fit together or name something that does not exist."""

    exit_code = 2


class TraceError(MoeProbeError):
    """A trace that is missing, foreign, corrupt, or cannot be written."""


class CaptureError(MoeProbeError):
    """Routing decisions that cannot be read exactly, or were not read for every token."""
