"""From the model's thread to the recording thread: bounded, in order, and never raising there."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, NamedTuple, TypeVar

_Result = TypeVar("_Result")
_CLOSE = object()
# Items are taken in by the handful, since waking for each costs a decoding engine more than the
# work itself.
_GATHER_SECONDS = 0.05


class _Run(NamedTuple):
    call: Callable[[], None]


class Channel:
    """A thread that takes in what the model's thread puts, in its order.

    Args:
        take: Called on the thread with every item.
        tidy: Called on the thread once in a while, whether items come or not.
        max_bytes: Most bytes that wait; one item is always let through.
        tidy_seconds: How long that while is.
    """

    def __init__(
        self,
        take: Callable[[Any], None],
        tidy: Callable[[], None],
        *,
        max_bytes: int,
        tidy_seconds: float,
    ) -> None:
        self.error: BaseException | None = None
        """What ended the recording, if anything did; items are then thrown away."""
        self._take, self._tidy = take, tidy
        self._max_bytes, self._tidy_seconds = max_bytes, tidy_seconds
        self._waiting_bytes = 0
        self._has_room, self._hurry = threading.Condition(), threading.Event()
        self._items: queue.SimpleQueue[tuple[Any, int]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="moe-probe-recorder", daemon=True)
        self._thread.start()

    def put(self, item: Any, num_bytes: int = 0, *, wait: bool = True) -> bool:
        """Hand over an item; without `wait`, False says that there was no room for it."""
        with self._has_room:
            while num_bytes and self._waiting_bytes + num_bytes > max(self._max_bytes, num_bytes):
                if not wait:
                    return False
                self._hurry.set()
                self._has_room.wait()
            self._waiting_bytes += num_bytes
        self._items.put((item, num_bytes))
        return True

    def run(self, function: Callable[[], _Result]) -> _Result:
        """Run a function on the thread, after all that was put before, and return its result."""
        future: Future[_Result] = Future()

        def call() -> None:
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)

        self._items.put((_Run(call), 0))
        self._hurry.set()
        return future.result()

    def close(self) -> None:
        """Let the thread take in what waits, and end it."""
        self._items.put((_CLOSE, 0))
        self._hurry.set()
        self._thread.join()

    def _work(self) -> None:
        tidied = time.monotonic()
        while True:
            if time.monotonic() - tidied >= self._tidy_seconds:
                self._guarded(self._tidy)
                tidied = time.monotonic()
            try:
                left = tidied + self._tidy_seconds - time.monotonic()
                item, num_bytes = self._items.get(timeout=max(left, 0.0))
            except queue.Empty:
                continue
            if self._items.empty():
                self._hurry.wait(_GATHER_SECONDS)
                self._hurry.clear()
            if item is _CLOSE:
                return
            if isinstance(item, _Run):
                # Even after an error: somebody waits for the result.
                item.call()
                continue
            self._guarded(self._take, item)
            with self._has_room:
                self._waiting_bytes -= num_bytes
                self._has_room.notify()

    def _guarded(self, function: Callable[..., None], *arguments: Any) -> None:
        if self.error is None:
            try:
                function(*arguments)
            except BaseException as error:
                self.error = error
