"""Rows in pages against a dictionary: whatever is run, and run again, in whatever order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_probe.hooks.vllm.pages import RowPages

COLUMNS: dict[str, tuple[int, np.dtype]] = {
    "ids": (3, np.dtype(np.uint8)),
    "weights": (2, np.dtype(np.float16)),
    "token": (1, np.dtype(np.int32)),
    "nothing": (0, np.dtype(np.float16)),
}
Draw = Callable[[st.SearchStrategy[int]], int]


@dataclass
class _Known:
    """What a request should have: its rows by position, and the span they are said to fill."""

    first: int
    end: int
    rows: dict[int, int] = field(default_factory=dict)


def _columns(values: list[int]) -> dict[str, np.ndarray]:
    """Rows of every column that tell which value, unique in a test, they are of."""
    value_T = np.asarray(values, np.int64)
    return {
        "ids": np.stack([value_T % 256, value_T // 256 % 256, value_T % 7], 1).astype(np.uint8),
        "weights": np.stack([value_T % 2000, value_T % 3], 1).astype(np.float16),
        "token": value_T[:, None].astype(np.int32),
        "nothing": np.empty((len(values), 0), np.float16),
    }


class _Both:
    """Pages and dictionary, doing the same."""

    def __init__(self) -> None:
        self.pages = RowPages(COLUMNS)
        self.known: dict[int, _Known] = {}
        self._value = 0

    def open(self, first: int) -> None:
        handle = self.pages.open(first)
        assert handle not in self.known
        self.known[handle] = _Known(first, first)

    def put(self, chunks: dict[int, tuple[int, int]]) -> None:
        """Store (start, count) tokens of several requests in one step."""
        lost, skipped, values = [], [], []
        for handle, (start, count) in chunks.items():
            known = self.known[handle]
            lost.append(sum(known.first <= at < known.end for at in range(start, known.end)))
            skipped.append(sum(at >= known.end for at in range(known.first, start)))
            for position in [position for position in known.rows if position >= start]:
                del known.rows[position]
            for position in range(start, start + count):
                self._value += 1
                known.rows[position] = self._value
                values.append(self._value)
            known.first, known.end = min(known.first, start), start + count
        starts, counts = zip(*chunks.values(), strict=True)
        lost_Q, skipped_Q = self.pages.put(
            np.asarray(list(chunks)), np.asarray(starts), np.asarray(counts), **_columns(values)
        )
        assert (lost_Q.tolist(), skipped_Q.tolist()) == (lost, skipped)

    def check(self, handle: int) -> None:
        known = self.known[handle]
        assert self.pages.span(handle) == (known.first, known.end)
        # Whatever stands in a hole, the rows around it are at their places.
        positions = sorted(known.rows)
        expected = _columns([known.rows[position] for position in positions])
        for stop in {known.end, (known.first + known.end) // 2}:
            found = self.pages.get(handle, stop)
            assert list(found) == list(COLUMNS)
            before = [position for position in positions if position < stop]
            for name, values in found.items():
                assert values.dtype == COLUMNS[name][1]
                assert values.shape == (stop - known.first, COLUMNS[name][0])
                at = np.asarray(before, np.int64) - known.first
                np.testing.assert_array_equal(values[at], expected[name][: len(before)])

    def close(self, handle: int) -> None:
        self.pages.close(handle)
        del self.known[handle]


def _start(draw: Draw, known: _Known) -> int:
    """Mostly where the request stands, as in chunked prefill; else earlier, or with a hole."""
    earlier = st.integers(0, known.end)
    return draw(st.one_of(st.just(known.end), st.just(known.end), earlier, st.just(known.end + 3)))


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_any_interleaving_is_as_a_dictionary(data: st.DataObject) -> None:
    both = _Both()
    for _ in range(data.draw(st.integers(1, 25))):
        action = data.draw(st.sampled_from(["open", "put", "put", "put", "close"]))
        if action == "open" or not both.known:
            both.open(data.draw(st.sampled_from([0, 1, 16, 40])))
        elif action == "close":
            both.close(data.draw(st.sampled_from(sorted(both.known))))
        else:
            some = data.draw(st.lists(st.sampled_from(sorted(both.known)), min_size=1, unique=True))
            count = st.sampled_from([1, 1, 2, 15, 16, 17, 33, 200])
            both.put({x: (_start(data.draw, both.known[x]), data.draw(count)) for x in some})
        for handle in both.known:
            if both.known[handle].rows:
                both.check(handle)


def test_a_restart_loses_rows_from_there_on_only() -> None:
    both = _Both()
    both.open(32)
    (handle,) = both.known
    both.put({handle: (32, 50)})
    for start, span in ((70, (32, 75)), (32, (32, 37)), (10, (10, 15)), (15, (10, 20))):
        both.put({handle: (start, 5)})
        assert both.pages.span(handle) == span
        both.check(handle)


def test_many_requests_and_long_ones_grow_the_store() -> None:
    both = _Both()
    for _ in range(200):
        both.open(0)
    for start in range(0, 60, 20):
        both.put(dict.fromkeys(both.known, (start, 20)))
    longest = max(both.known)
    both.put({longest: (60, 3000)})
    for handle in both.known:
        both.check(handle)


def test_pages_and_handles_are_used_again() -> None:
    both = _Both()
    for _ in range(50):
        for _ in range(8):
            both.open(5)
        both.put(dict.fromkeys(both.known, (5, 40)))
        for handle in list(both.known):
            both.check(handle)
            both.close(handle)
    # Eight requests at a time fit what the store begins with; all fifty times eight do not.
    assert sum(values.shape[0] for values in both.pages._rows.values()) == 4 * 256 * 16
    assert len(both.pages._table) == 64
