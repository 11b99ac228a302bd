"""Staging files that are not what a recording leaves are named; all else stays intact."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from moe_probe.errors import TraceError
from moe_probe.trace import open_trace
from moe_probe.trace.staging import Segment
from tests.trace.unfinished import PROMPTS, abandoned


def stage_file(path: Path) -> Path:
    return next(p for p in sorted((path / "stage").iterdir()) if _rows(p))


def _rows(path: Path) -> int:
    segment = Segment.open(path)
    return 0 if segment is None else segment.num_rows


@pytest.mark.parametrize(
    ("offset", "content", "reason"),
    [
        (8, b"\xff" * 8, "rows and 4294967295 bytes"),
        (12, b"\x01\x00\x00\x00", "more or fewer rows than tokens"),
        (12, b"\x3c\x00\x00\x00", "fit no sequence"),
        (8, b"\x10\x00", "Unterminated string|Expecting|line 1"),
        (16, b"\xff" * 8, "in segment 18446744073709551615"),
        (0, b"PNGPNGPN", "does not begin as one"),
        (24, b"\xff" * 8, "does not begin as one"),
        (4096, b"nonsense", "Expecting value"),
        (4096, b"[" * 2000, ""),
        (1 << 20, b"\x77" * 8, "fit no sequence"),
    ],
)
def test_damaged_staging_is_named(tmp_path: Path, offset: int, content: bytes, reason: str) -> None:
    with abandoned(tmp_path / "t"):
        pass
    path = stage_file(tmp_path / "t")
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(content)
    message = rf"Staging file .*{path.name} is damaged .*({reason}).*Delete it"
    with pytest.raises(TraceError, match=message):
        open_trace(tmp_path / "t")
    path.unlink()
    assert 0 < open_trace(tmp_path / "t").sequences.num_rows < PROMPTS


@pytest.mark.parametrize(
    "change",
    [
        {"rank": "../../../evil"},
        {"rank": 3},
        {"tokens": -1},
        {"tokens": 1 << 40},
        {"tokens": "many"},
        {"capture": "weights"},
        {"layers": []},
        {"layers": [{"layer": 1, "num_experts": 8, "top_k": 9}]},
    ],
)
def test_nonsense_headers_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    with abandoned(tmp_path / "t"):
        pass
    path = stage_file(tmp_path / "t")
    with open(path, "r+b") as file:
        file.seek(24)
        length = int.from_bytes(file.read(8), "little")
        file.seek(4096)
        text = json.dumps({**json.loads(file.read(length)), **change}).encode()
        file.seek(24)
        file.write(len(text).to_bytes(8, "little"))
        file.seek(4096)
        file.write(text)
    before = sorted(tmp_path.parent.glob("*"))
    with pytest.raises(TraceError, match=r"Staging file .* is damaged or not one"):
        open_trace(tmp_path / "t")
    assert sorted(tmp_path.parent.glob("*")) == before
