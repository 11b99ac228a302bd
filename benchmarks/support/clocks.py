"""Wall and CPU time of a call."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any


def seconds(call: Callable[[], Any]) -> tuple[float, float]:
    """Wall and CPU seconds of a call; the CPU time is that of all threads."""
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall, time.process_time() - cpu


def in_turn(calls: Sequence[Callable[[], Any]], rounds: int) -> list[list[tuple[float, float]]]:
    """Time calls one after another, round after round, so that a slow spell hits all alike.

    Returns, per call, its seconds in each round. A first round, which warms up, does not count.
    Nor does a run of each call right before the one that is timed: memory that another call gave
    back to the system makes the next one up to half as slow again.
    """
    times = [[_settled(call) for call in calls] for _ in range(rounds + 1)][1:]
    return [list(column) for column in zip(*times, strict=True)]


def _settled(call: Callable[[], Any]) -> tuple[float, float]:
    call()
    return seconds(call)


def median_cpu(call: Callable[[], Any], rounds: int) -> float:
    """Median CPU seconds of a call that is warm."""
    (times,) = in_turn([call], rounds)
    return statistics.median(cpu for _, cpu in times)
