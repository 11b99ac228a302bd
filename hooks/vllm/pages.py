"""Rows of the requests an engine is running, in pages, as the engine keeps their keys and values.

A step's rows belong to many requests; one indexed store puts them all where they belong, and
running a position again overwrites what it gave before. Memory follows what the engine has in
flight.

Shape suffixes: T tokens of a step, Q requests of a step.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

_PAGE = 16
_FIRST_PAGES, _FIRST_HANDLES = 256, 64


class RowPages:
    """Stores rows by request and position.

    Args:
        columns: Name, width and type of what a row has: {"ids": (464, uint8), ...}.
    """

    def __init__(self, columns: Mapping[str, tuple[int, np.dtype]]) -> None:
        self._rows = {
            name: np.empty((_FIRST_PAGES * _PAGE, width), dtype)
            for name, (width, dtype) in columns.items()
        }
        self._free_pages = list(range(_FIRST_PAGES))
        # By handle: its pages in order, how many, and which positions [first, end) they hold.
        self._table = np.zeros((_FIRST_HANDLES, 8), np.int64)
        self._num_pages = np.zeros(_FIRST_HANDLES, np.int64)
        self._first = np.zeros(_FIRST_HANDLES, np.int64)
        self._end = np.zeros(_FIRST_HANDLES, np.int64)
        self._free_handles = list(range(_FIRST_HANDLES))

    def open(self, first: int) -> int:
        """Return a handle for a new request whose rows begin at position `first`."""
        if not self._free_handles:
            self._grow_handles()
        handle = self._free_handles.pop()
        self._first[handle] = self._end[handle] = first
        return handle

    def close(self, handle: int) -> None:
        """Forget a request."""
        used = self._table[handle, : self._num_pages[handle]]
        self._free_pages.extend(used.tolist())
        self._num_pages[handle] = 0
        self._free_handles.append(handle)

    def span(self, handle: int) -> tuple[int, int]:
        """The positions [first, end) whose rows a request has."""
        return int(self._first[handle]), int(self._end[handle])

    def put(
        self, handles_Q: np.ndarray, starts_Q: np.ndarray, counts_Q: np.ndarray, **rows: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Store a step's rows.

        A request that is run again from an earlier position loses what it had from there on.

        Args:
            handles_Q: The requests.
            starts_Q: First position of each in this step.
            counts_Q: Tokens of each, consecutive positions.
            rows: Every column, [T, width], request after request.

        Returns:
            Per request, how many positions it had and lost, and how many it skipped, so that its
            rows have a hole, whose positions count as had.
        """
        first_Q, end_Q = self._first[handles_Q], self._end[handles_Q]
        skipped_Q = np.clip(starts_Q - end_Q, 0, None)
        lost_Q = np.clip(end_Q - np.maximum(starts_Q, first_Q), 0, None)
        first_Q = np.minimum(first_Q, starts_Q)
        stops_Q = starts_Q + counts_Q
        self._first[handles_Q], self._end[handles_Q] = first_Q, stops_Q
        needed_Q = -(-(stops_Q - first_Q) // _PAGE)
        for index in np.flatnonzero(needed_Q > self._num_pages[handles_Q]).tolist():
            self._add_pages(int(handles_Q[index]), int(needed_Q[index]))
        within_T = np.arange(counts_Q.sum()) - np.repeat(np.cumsum(counts_Q) - counts_Q, counts_Q)
        offset_T = np.repeat(starts_Q - first_Q, counts_Q) + within_T
        page_T = self._table[np.repeat(handles_Q, counts_Q), offset_T // _PAGE]
        row_T = page_T * _PAGE + offset_T % _PAGE
        for name, values in rows.items():
            self._rows[name][row_T] = values
        return lost_Q, skipped_Q

    def get(self, handle: int, stop: int) -> dict[str, np.ndarray]:
        """The rows of a request's positions [first, stop), every column, as new arrays."""
        offset_T = np.arange(stop - self._first[handle])
        row_T = self._table[handle, offset_T // _PAGE] * _PAGE + offset_T % _PAGE
        return {name: values[row_T] for name, values in self._rows.items()}

    def _add_pages(self, handle: int, number: int) -> None:
        has = int(self._num_pages[handle])
        while len(self._free_pages) < number - has:
            self._grow_pages()
        if number > self._table.shape[1]:
            wider = np.zeros((len(self._table), max(number, 2 * self._table.shape[1])), np.int64)
            wider[:, : self._table.shape[1]] = self._table
            self._table = wider
        new = [self._free_pages.pop() for _ in range(number - has)]
        self._table[handle, has:number] = new
        self._num_pages[handle] = number

    def _grow_pages(self) -> None:
        for name, values in self._rows.items():
            larger = np.empty((2 * len(values), values.shape[1]), values.dtype)
            larger[: len(values)] = values
            self._rows[name] = larger
            num_pages = len(values) // _PAGE
        self._free_pages.extend(range(num_pages, 2 * num_pages))

    def _grow_handles(self) -> None:
        old = len(self._table)
        self._table = np.concatenate([self._table, np.zeros_like(self._table)])
        for name in ("_num_pages", "_first", "_end"):
            values = getattr(self, name)
            setattr(self, name, np.concatenate([values, np.zeros_like(values)]))
        self._free_handles.extend(range(old, 2 * old))
