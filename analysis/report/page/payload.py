"""Data for the page: one JSON header and arrays, deflated, as text.

Layout of the inflated bytes: a uint64 (little-endian) with the length of the header, the header,
then the arrays, each at a multiple of 8 bytes. Bytes of an array stand by significance, all first
bytes before all second ones, which deflates better. `js/decode.js` reads it.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd

from moe_probe.analysis.report.page.text import to_text

DIGITS = 5
"""Significant digits of floats unless a table asks for fewer."""
_NO_INTEGER = -(2**31)


class Payload:
    """Collects what the page is given."""

    def __init__(self) -> None:
        self.meta: dict[str, Any] = {}
        """Facts, as JSON: no NaN."""
        self._arrays: list[dict[str, Any]] = []
        self._bytes: list[bytes] = []
        self._tables: dict[str, dict[str, Any]] = {}

    def array(self, name: str, values: np.ndarray) -> None:
        """Add an array of numbers under a name; its shape is kept, its type as small as fits."""
        self._add(name, _smallest(np.ascontiguousarray(values)))

    def table(self, name: str, table: pd.DataFrame, *, digits: int = DIGITS) -> None:
        """Add a table: integers as they are, floats with so many digits, texts once each."""
        columns = []
        for column in map(str, table.columns):
            kind, values, texts = _column(table[column], digits)
            key = f"{name}.{column}"
            self._add(key, values)
            columns.append({"name": column, "kind": kind, "texts": texts})
        self._tables[name] = {"length": len(table), "columns": columns}

    def encode(self) -> str:
        """Return all as text."""
        header = {"meta": self.meta, "arrays": self._arrays, "tables": self._tables}
        text = json.dumps(header, ensure_ascii=False, allow_nan=False).encode("utf-8")
        parts = [len(text).to_bytes(8, "little"), text, bytes(-len(text) % 8), *self._bytes]
        return to_text(b"".join(parts))

    def _add(self, name: str, values: np.ndarray) -> None:
        raw = values.astype(values.dtype.newbyteorder("<"), copy=False)
        planes = raw.reshape(-1).view(np.uint8).reshape(-1, raw.itemsize).T.tobytes()
        self._arrays.append({"name": name, "type": values.dtype.name, "shape": values.shape})
        self._bytes.append(planes + bytes(-len(planes) % 8))


def round_float32(values: np.ndarray, digits: int) -> np.ndarray:
    """Return float32 with no more bits than so many decimal digits need; NaN stays.

    The relative error is at most half of 10 ** -digits.
    """
    kept = min(23, int(np.ceil(digits * np.log2(10))) - 1)
    bits = values.astype(np.float32).view(np.uint32)
    dropped = np.uint32(23 - kept)
    half = np.uint32((1 << (23 - kept)) >> 1)
    rounded = ((bits + half) >> dropped) << dropped
    finite = np.isfinite(values)
    return np.where(finite, rounded, bits).astype(np.uint32).view(np.float32)


def _column(values: pd.Series, digits: int) -> tuple[str, np.ndarray, list[str]]:
    """Return what a column is, its array, and the texts that its codes stand for."""
    if pd.api.types.is_bool_dtype(values.dtype) or pd.api.types.is_integer_dtype(values.dtype):
        return "integer", _integers(values), []
    if pd.api.types.is_float_dtype(values.dtype):
        return "number", round_float32(values.to_numpy(np.float64, na_value=np.nan), digits), []
    # Null is the code -1.
    codes, texts = pd.factorize(values.astype(object).where(values.notna(), None))
    return "text", _smallest(codes + 1), [str(text) for text in texts]


def _integers(values: pd.Series) -> np.ndarray:
    if values.isna().any():
        filled = values.to_numpy(np.float64, na_value=np.nan)
        if np.nanmax(np.abs(filled), initial=0) >= 2**31:
            return filled
        return np.where(np.isnan(filled), _NO_INTEGER, filled).astype(np.int32)
    return _smallest(values.to_numpy(np.int64))


def _smallest(values: np.ndarray) -> np.ndarray:
    """Return integers in the smallest type that a browser's arrays have, float64 past 32 bits."""
    if not np.issubdtype(values.dtype, np.integer):
        return values
    low, high = int(values.min(initial=0)), int(values.max(initial=0))
    for kind in (np.uint8, np.uint16, np.uint32, np.int32):
        if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
            return values.astype(kind)
    return values.astype(np.float64)
