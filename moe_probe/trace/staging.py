"""Memory-mapped staging: what a recording has accepted survives the death of its process.

A segment is one file of fixed size. Rows and events are copied in first, then one aligned 8-byte
word says how many of each are valid, so a kill between the two leaves the earlier state. The page
cache keeps a mapped file across SIGKILL; a power cut is what the fsynced parts are for.

Shape suffixes: T tokens, B bytes of one token's ids, S slots of one token over all layers,
R router scalars of one token over all layers.
"""

from __future__ import annotations

import json
import mmap
import os
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from moe_probe.errors import TraceError
from moe_probe.trace.schema import MAX_SEQUENCE_TOKENS, Capture, RowLayout, Sequence

_MAGIC = b"MOEPSEG1"
_PAGE = 4096
_HEADER_BYTES = 1 << 20  # describes up to a few thousand layers; sparse on disk until written
LOG_BYTES = 8 << 20
_MAX_NUMBER = 10**9


class Rows(NamedTuple):
    """Rows of one sequence; what the layers or the capture level lack is ignored."""

    ids_TB: np.ndarray
    token_id_T: np.ndarray | None = None
    weights_TS: np.ndarray | None = None
    scalars_TR: np.ndarray | None = None
    forward_pass_T: np.ndarray | int | None = None


class Segment:
    """One staging file: up to `tokens` rows and a log of events, under a sequence number."""

    def __init__(self, path: Path, buffer: mmap.mmap, header: dict[str, Any]) -> None:
        self.path = path
        self.tokens: int = header["tokens"]
        self.rank: int = header["rank"]
        for value, limit in ((self.tokens, MAX_SEQUENCE_TOKENS + 1), (self.rank, _MAX_NUMBER)):
            if type(value) is not int or not 0 <= value < limit:
                raise ValueError(f"impossible number {value!r:.40}")
        self.capture = Capture(header["capture"])
        self.layout = RowLayout.from_json(header["layers"])
        self._buffer = buffer
        self._words = np.frombuffer(buffer, np.uint64, count=2, offset=8)
        self._map_columns(has_forward_passes=bool(header.get("forward_passes")))
        if self.num_rows > self.tokens or self._log_end > LOG_BYTES or self.number >= _MAX_NUMBER:
            raise ValueError(
                f"{self.num_rows} rows and {self._log_end} bytes of events in segment {self.number}"
            )

    def _map_columns(self, *, has_forward_passes: bool) -> None:
        shapes: dict[str, tuple[Any, tuple[int, ...]]] = {
            "sequence_id_T": (np.int64, (self.tokens,)),
            "position_T": (np.int32, (self.tokens,)),
            "token_id_T": (np.int32, (self.tokens,)),
            "ids_TB": (np.uint8, (self.tokens, self.layout.ids_bytes)),
        }
        if self.capture is Capture.WEIGHTS:
            shapes["weights_TS"] = (np.float16, (self.tokens, self.layout.num_slots))
            shapes["scalars_TR"] = (np.float16, (self.tokens, self.layout.num_scalars))
        shapes["log"] = (np.uint8, (LOG_BYTES,))
        # After all else, so that segments with and without it are alike up to here.
        if has_forward_passes:
            shapes["forward_pass_T"] = (np.int32, (self.tokens,))
        offset = _HEADER_BYTES
        # Plain arrays over one buffer: np.memmap objects cost three times as much per access.
        views: dict[str, np.ndarray] = {}
        for name, (dtype, shape) in shapes.items():
            count = int(np.prod(shape))
            flat = (
                np.frombuffer(self._buffer, dtype, count, offset) if count else np.empty(0, dtype)
            )
            views[name] = flat.reshape(shape)
            offset = _align(offset + count * np.dtype(dtype).itemsize)
        if not has_forward_passes:  # the file is an earlier moe-probe's
            views["forward_pass_T"] = np.full(self.tokens, -1, np.int32)
        self.sequence_id_T = views["sequence_id_T"]
        self.position_T = views["position_T"]
        self.token_id_T = views["token_id_T"]
        self.ids_TB = views["ids_TB"]
        self.weights_TS = views.get("weights_TS")
        self.scalars_TR = views.get("scalars_TR")
        self._log = views["log"]
        self.forward_pass_T = views["forward_pass_T"]

    @classmethod
    def create(
        cls, path: Path, *, layout: RowLayout, capture: Capture, rank: int, tokens: int
    ) -> Self:
        """Allocate and pre-fault a staging file; raises TraceError when the disk has no room."""
        header = {
            "tokens": tokens,
            "capture": str(capture),
            "rank": rank,
            "layers": [spec.to_json() for spec in layout.layers],
            "forward_passes": True,
        }
        text = json.dumps(header).encode()
        if len(text) > _HEADER_BYTES - _PAGE:
            raise TraceError(
                f"{len(layout.layers)} layers need {len(text)} bytes of segment header, more than "
                f"{_HEADER_BYTES - _PAGE}. Give the layers fewer facts."
            )
        row = 20 + layout.ids_bytes
        if capture is Capture.WEIGHTS:
            row += 2 * (layout.num_slots + layout.num_scalars)
        size = _HEADER_BYTES + _align(tokens * row + 7 * _PAGE) + LOG_BYTES
        buffer = _reserve(path, size)
        np.frombuffer(buffer, np.uint8)[_HEADER_BYTES::_PAGE] = 0
        buffer[_PAGE : _PAGE + len(text)] = text
        buffer[24:32] = len(text).to_bytes(8, "little")
        buffer[0:8] = _MAGIC  # last: a file without it was never written to
        return cls(path, buffer, header)

    @classmethod
    def open(cls, path: Path) -> Self | None:
        """Map a leftover file to read it; None when its process died before it was ready.

        Raises TraceError for a file that is damaged or not a segment.
        """
        try:
            size = path.stat().st_size
            if size < _HEADER_BYTES:
                return None
            with open(path, "rb") as file:
                buffer = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
            length = int.from_bytes(buffer[24:32], "little")
            if buffer[0:8] == bytes(8):
                return None
            if buffer[0:8] != _MAGIC or length > _HEADER_BYTES - _PAGE:
                raise ValueError("it does not begin as one")
            return cls(path, buffer, json.loads(buffer[_PAGE : _PAGE + length]))
        except (ValueError, KeyError, TypeError, RecursionError, TraceError) as error:
            raise damaged(path, error) from error
        except OSError as error:
            raise TraceError(f"Cannot read {path}: {error.strerror}.") from error

    @property
    def number(self) -> int:
        """The segment's sequence number, which the parts made from it carry too."""
        return int(self._words[1])

    @property
    def num_rows(self) -> int:
        return int(self._words[0]) >> 32

    @property
    def _log_end(self) -> int:
        return int(self._words[0]) & 0xFFFF_FFFF

    @property
    def is_empty(self) -> bool:
        return int(self._words[0]) == 0

    def reset(self, number: int) -> None:
        """Empty the segment and give it a new number."""
        self._words[0] = 0
        self._words[1] = number

    def fits(self, rows: int, event: bytes) -> bool:
        return self.num_rows + rows <= self.tokens and self._log_end + len(event) + 1 <= LOG_BYTES

    def append(
        self,
        event: bytes,
        sequence: Sequence | None = None,
        rows: Rows | None = None,
    ) -> None:
        """Copy rows and one event line in, then commit both with a single store."""
        # The word is the only state: an interrupt at any point leaves rows and events in step.
        start = stop = self.num_rows
        if sequence is not None and rows is not None:
            count = len(rows.ids_TB)
            stop += count
            self.ids_TB[start:stop] = rows.ids_TB
            self.sequence_id_T[start:stop] = sequence.sequence_id
            first = sequence.prefix_tokens
            self.position_T[start:stop] = np.arange(first, first + count)
            self.token_id_T[start:stop] = -1 if rows.token_id_T is None else rows.token_id_T
            passes: Any = -1 if rows.forward_pass_T is None else rows.forward_pass_T
            self.forward_pass_T[start:stop] = passes
            if self.weights_TS is not None:
                self.weights_TS[start:stop] = rows.weights_TS
            if self.scalars_TR is not None and self.layout.num_scalars:
                self.scalars_TR[start:stop] = rows.scalars_TR
        line = event + b"\n"
        log_start = self._log_end
        log_end = log_start + len(line)
        self._log[log_start:log_end] = np.frombuffer(line, np.uint8)
        self._words[0] = (stop << 32) | log_end

    def events(self) -> list[dict[str, Any]]:
        """Committed events, oldest first."""
        lines = self._log[: self._log_end].tobytes().splitlines()
        return [json.loads(line) for line in lines]


def damaged(path: Path, error: Exception) -> TraceError:
    """What to say of a staging file whose content cannot be right."""
    return TraceError(
        f"Staging file {path} is damaged or not one ({error!s:.200}). Delete it to open the trace "
        "without the tokens in it; everything else is intact."
    )


def _reserve(path: Path, size: int) -> mmap.mmap:
    try:
        with open(path, "x+b") as file:
            # Reserved now: a full disk found later, through the mapping, would be SIGBUS.
            os.posix_fallocate(file.fileno(), 0, size)
            return mmap.mmap(file.fileno(), size)
    except OSError as error:
        if not isinstance(error, FileExistsError):
            path.unlink(missing_ok=True)
        raise TraceError(
            f"Cannot reserve {size / 2**20:.0f} MiB of staging space at {path.parent}: "
            f"{error.strerror}. Free some space or choose another place with --output."
        ) from error


def _align(offset: int) -> int:
    return -(-offset // _PAGE) * _PAGE
