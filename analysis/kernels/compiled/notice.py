"""A word to whoever waits while loops are compiled, which the first scan on a machine has to do."""

from __future__ import annotations

from typing import Any

from numba.core import event

from moe_probe import output


class _Notice(event.Listener):  # type: ignore[misc]
    """Speaks up when the compiler begins with one of our loops, once."""

    def __init__(self) -> None:
        self._said = False

    def on_start(self, started: Any) -> None:
        module = started.data["dispatcher"].py_func.__module__
        # What other packages compile in this process is not our business.
        if not self._said and module.startswith(__package__):
            self._said = True
            output.note("Compiling loops for this shape of layers: once here, some ten seconds.")

    def on_end(self, ended: Any) -> None:
        pass


def announce() -> None:
    """Say so from now on when loops are compiled; not when they were compiled before."""
    event.register("numba:compile", _Notice())
