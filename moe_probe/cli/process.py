"""How commands that analyse use their process: settings that are a program's business alone."""

from __future__ import annotations

import atexit
import ctypes
import gc
import os
import sys

_GC_OBJECTS = 50_000
_ARENA_MAX = -8
"""M_ARENA_MAX of glibc's malloc.h."""


def prepare_analysis() -> None:
    """Set this process up for a scan; to be called before numpy is imported.

    What a user has chosen by environment variables stays.
    """
    # Modules are no garbage: looking for some among all they define takes a third of a second.
    gc.set_threshold(_GC_OBJECTS)
    # Nor at the end, which takes a tenth.
    atexit.register(gc.freeze)
    # Threads that nothing here uses, and that turn idle rounds while the rest is imported.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if sys.platform == "linux" and "MALLOC_ARENA_MAX" not in os.environ:
        _share_freed_memory()


def _share_freed_memory() -> None:
    """Let each thread reuse what others have freed: a tenth less memory, in the same time.

    By default glibc keeps it apart for each thread. Other C libraries do not have this setting.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(_ARENA_MAX, 1)
