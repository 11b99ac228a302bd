"""The channel between two threads: order, bounds, errors, the end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from moe_probe.hooks.vllm.channel import Channel


class Taken:
    """A channel whose thread waits for the test before each item."""

    def __init__(self, *, max_bytes: int = 1 << 30, tidy_seconds: float = 60.0) -> None:
        self.items: list[Any] = []
        self.tidy_calls = 0
        self.may_go = threading.Event()
        self.may_go.set()
        self.tidied = threading.Event()
        self.channel = Channel(
            self._take, self._tidy, max_bytes=max_bytes, tidy_seconds=tidy_seconds
        )

    def _take(self, item: Any) -> None:
        self.may_go.wait()
        if isinstance(item, Exception):
            raise item
        self.items.append(item)

    def _tidy(self) -> None:
        self.tidy_calls += 1
        self.tidied.set()


def _in_thread(function: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(function()), daemon=True)
    thread.start()
    return thread, results


def test_items_and_functions_come_in_the_order_they_were_put() -> None:
    taken = Taken()
    for number in range(200):
        assert taken.channel.put(number, 10)
        if number % 50 == 0:
            assert taken.channel.run(lambda: list(taken.items)) == list(range(number + 1))
    taken.channel.close()
    assert taken.items == list(range(200))


def test_without_waiting_what_has_no_room_is_not_taken() -> None:
    taken = Taken(max_bytes=100)
    taken.may_go.clear()
    put = [taken.channel.put(number, 40, wait=False) for number in range(5)]
    assert put == [True, True, False, False, False]
    # What has no size always has room.
    assert taken.channel.put("small", wait=False)
    taken.may_go.set()
    taken.channel.run(lambda: None)
    assert taken.channel.put(5, 100, wait=False)
    taken.channel.close()
    assert taken.items == [0, 1, "small", 5]


def test_waiting_holds_the_producer_until_there_is_room() -> None:
    taken = Taken(max_bytes=100)
    taken.may_go.clear()
    assert taken.channel.put(0, 60)
    thread, results = _in_thread(lambda: taken.channel.put(1, 60))
    thread.join(0.2)
    assert thread.is_alive()
    taken.may_go.set()
    thread.join(10)
    assert results == [True]
    taken.channel.close()
    assert taken.items == [0, 1]


@pytest.mark.parametrize("wait", [False, True])
def test_one_item_larger_than_the_bound_goes_through_alone(wait: bool) -> None:
    taken = Taken(max_bytes=100)
    taken.may_go.clear()
    assert taken.channel.put("large", 5000, wait=wait)
    assert not taken.channel.put("other", 1, wait=False)
    taken.may_go.set()
    taken.channel.close()
    assert taken.items == ["large"]


def test_an_error_ends_the_taking_and_not_the_producer() -> None:
    taken = Taken(max_bytes=100)
    error = RuntimeError("out of disk")
    taken.channel.put(0, 60)
    taken.channel.put(error, 60)
    for number in range(50):
        assert taken.channel.put(number, 60)
    # Functions still run: somebody waits for them.
    assert taken.channel.run(lambda: 7) == 7
    assert taken.channel.error is error
    taken.channel.close()
    assert taken.items == [0]


def test_the_first_error_is_the_one_that_is_kept() -> None:
    taken = Taken()
    first = ValueError("first")
    taken.channel.put(first)
    taken.channel.put(ValueError("second"))
    taken.channel.close()
    assert taken.channel.error is first


def test_functions_return_and_raise_where_they_were_asked_for() -> None:
    taken = Taken()
    assert taken.channel.run(threading.get_ident) != threading.get_ident()
    with pytest.raises(ZeroDivisionError):
        taken.channel.run(lambda: 1 // 0)
    assert taken.channel.error is None
    taken.channel.put("after")
    taken.channel.close()
    assert taken.items == ["after"]


def test_closing_takes_in_what_waits() -> None:
    taken = Taken(max_bytes=1000)
    taken.may_go.clear()
    for number in range(10):
        taken.channel.put(number, 100)
    thread, _ = _in_thread(taken.channel.close)
    taken.may_go.set()
    thread.join(10)
    assert not thread.is_alive()
    assert taken.items == list(range(10))


@pytest.mark.parametrize("is_busy", [False, True])
def test_it_is_tidied_once_in_a_while_whether_items_come_or_not(is_busy: bool) -> None:
    taken = Taken(tidy_seconds=0.05)
    started = time.monotonic()
    while not taken.tidied.is_set() and time.monotonic() - started < 10:
        if is_busy:
            taken.channel.put("item")
        time.sleep(0.001)
    seconds = time.monotonic() - started
    taken.channel.close()
    assert 1 <= taken.tidy_calls <= seconds / 0.05 + 1
    calls = taken.tidy_calls
    time.sleep(0.1)
    assert taken.tidy_calls == calls


def test_an_error_while_tidying_is_noted() -> None:
    def fail() -> None:
        raise OSError("no space")

    channel = Channel(print, fail, max_bytes=1, tidy_seconds=0.01)
    for _ in range(1000):
        if channel.error is not None:
            break
        time.sleep(0.01)
    assert isinstance(channel.error, OSError)
    channel.close()
