"""Memory-mapped staging: what a recording has accepted survives the death of its process.

A segment is one file of fixed size. Rows and events are copied in first, then one aligned 8-byte
word says how many of each are valid, so a kill between the two leaves the earlier state. The page
cache keeps a mapped file across SIGKILL; a power cut is what the fsynced parts are for.

Shape suffixes: T tokens, B bytes of one token's ids, S slots of one token over all layers.
"""

from __future__ import annotations

import json
import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np

from moe_probe.errors import TraceError
from moe_probe.trace.schema import Capture, LayerSpec, RowLayout

_MAGIC = b"MOEPSEG1"
_PAGE = 4096
_HEADER_BYTES = 1 << 20  # describes up to a few thousand layers; sparse on disk until written
_LOG_BYTES = 8 << 20


class Segment:
    """One staging file: up to `tokens` rows and a log of events, under a sequence number."""

    def __init__(self, path: Path, buffer: mmap.mmap, header: dict[str, Any]) -> None:
        self.path = path
        self.tokens: int = header["tokens"]
        self.capture = Capture(header["capture"])
        self.rank: int = header["rank"]
        self.layout = RowLayout(tuple(LayerSpec.from_json(v) for v in header["layers"]))
        self._buffer = buffer
        self._words = np.frombuffer(buffer, np.uint64, count=2, offset=8)
        offset = _HEADER_BYTES
        shapes: dict[str, tuple[Any, tuple[int, ...]]] = {
            "sequence_id_T": (np.int64, (self.tokens,)),
            "position_T": (np.int32, (self.tokens,)),
            "token_id_T": (np.int32, (self.tokens,)),
            "ids_TB": (np.uint8, (self.tokens, self.layout.ids_bytes)),
        }
        if self.capture is Capture.WEIGHTS:
            shapes["weights_TS"] = (np.float16, (self.tokens, self.layout.num_slots))
        shapes["log"] = (np.uint8, (_LOG_BYTES,))
        # Plain arrays over one buffer: np.memmap objects cost three times as much per access.
        views: dict[str, np.ndarray] = {}
        for name, (dtype, shape) in shapes.items():
            count = int(np.prod(shape))
            flat = np.frombuffer(buffer, dtype, count, offset) if count else np.empty(0, dtype)
            views[name] = flat.reshape(shape)
            offset = _align(offset + count * np.dtype(dtype).itemsize)
        self.sequence_id_T = views["sequence_id_T"]
        self.position_T = views["position_T"]
        self.token_id_T = views["token_id_T"]
        self.ids_TB = views["ids_TB"]
        self.weights_TS = views.get("weights_TS")
        self._log = views["log"]
        self._rows, self._log_end = self._committed()

    @classmethod
    def create(
        cls, path: Path, *, layers: tuple[LayerSpec, ...], capture: Capture, rank: int, tokens: int
    ) -> Segment:
        """Allocate and pre-fault a staging file; raises TraceError when the disk has no room."""
        header = {
            "tokens": tokens,
            "capture": str(capture),
            "rank": rank,
            "layers": [spec.to_json() for spec in layers],
        }
        text = json.dumps(header).encode()
        if len(text) > _HEADER_BYTES - _PAGE:
            raise TraceError(f"{len(layers)} layers need {len(text)} bytes of segment header.")
        layout = RowLayout(layers)
        row = 16 + layout.ids_bytes + (2 * layout.num_slots if capture is Capture.WEIGHTS else 0)
        size = _HEADER_BYTES + _align(tokens * row + 5 * _PAGE) + _LOG_BYTES
        try:
            with open(path, "w+b") as file:
                # Reserved now: a full disk found later, through the mapping, would be SIGBUS.
                os.posix_fallocate(file.fileno(), 0, size)
                buffer = mmap.mmap(file.fileno(), size)
        except OSError as error:
            path.unlink(missing_ok=True)
            raise TraceError(
                f"Cannot reserve {size / 2**20:.0f} MiB of staging space at {path.parent}: "
                f"{error.strerror}. Free some space or choose another place with --output."
            ) from error
        np.frombuffer(buffer, np.uint8)[_HEADER_BYTES::_PAGE] = 0
        buffer[_PAGE : _PAGE + len(text)] = text
        buffer[24:32] = len(text).to_bytes(8, "little")
        buffer[0:8] = _MAGIC
        return cls(path, buffer, header)

    @classmethod
    def open(cls, path: Path) -> Segment | None:
        """Map a leftover file; None when the process died before its header was complete."""
        size = path.stat().st_size
        if size < _HEADER_BYTES:
            return None
        with open(path, "r+b") as file:
            buffer = mmap.mmap(file.fileno(), size)
        length = int.from_bytes(buffer[24:32], "little")
        if buffer[0:8] != _MAGIC or length > _HEADER_BYTES - _PAGE:
            return None
        try:
            return cls(path, buffer, json.loads(buffer[_PAGE : _PAGE + length]))
        except (ValueError, KeyError, TypeError) as error:
            raise TraceError(f"Staging file {path} is damaged: {error}.") from error

    @property
    def number(self) -> int:
        """The segment's sequence number, which the parts made from it carry too."""
        return int(self._words[1])

    @property
    def num_rows(self) -> int:
        return self._rows

    @property
    def is_empty(self) -> bool:
        return self._rows == 0 and self._log_end == 0

    def reset(self, number: int) -> None:
        """Empty the segment and give it a new number."""
        self._words[0] = 0
        self._words[1] = number
        self._rows = self._log_end = 0

    def fits(self, rows: int, event: bytes) -> bool:
        return self._rows + rows <= self.tokens and self._log_end + len(event) + 1 <= _LOG_BYTES

    def append(
        self,
        event: bytes,
        *,
        sequence_id: int = -1,
        first_position: int = 0,
        token_id_T: np.ndarray | None = None,
        ids_TB: np.ndarray | None = None,
        weights_TS: np.ndarray | None = None,
    ) -> None:
        """Copy rows and one event line in, then commit both with a single store."""
        start = self._rows
        if ids_TB is not None:
            stop = start + len(ids_TB)
            self.ids_TB[start:stop] = ids_TB
            self.sequence_id_T[start:stop] = sequence_id
            self.position_T[start:stop] = np.arange(first_position, first_position + len(ids_TB))
            self.token_id_T[start:stop] = -1 if token_id_T is None else token_id_T
            if self.weights_TS is not None:
                assert weights_TS is not None
                self.weights_TS[start:stop] = weights_TS
            self._rows = stop
        line = event + b"\n"
        self._log[self._log_end : self._log_end + len(line)] = np.frombuffer(line, np.uint8)
        self._log_end += len(line)
        self._words[0] = (self._rows << 32) | self._log_end

    def events(self) -> list[dict[str, Any]]:
        """Committed events, oldest first."""
        lines = self._log[: self._log_end].tobytes().splitlines()
        return [json.loads(line) for line in lines]

    def _committed(self) -> tuple[int, int]:
        word = int(self._words[0])
        rows, log_end = word >> 32, word & 0xFFFF_FFFF
        if rows > self.tokens or log_end > _LOG_BYTES:
            raise TraceError(f"Staging file {self.path} is damaged: {rows} rows, {log_end} bytes.")
        return rows, log_end


def _align(offset: int) -> int:
    return -(-offset // _PAGE) * _PAGE
