"""A page of 57 subjects, 58 layers and 256 experts stays below five megabytes."""

from __future__ import annotations

from pathlib import Path

from moe_probe.analysis.report.page import render
from tests.analysis.report.page.full_size import LAYERS, contents_of

MOST_BYTES = 5_000_000
FEW, MORE = 2, 4
"""Layers of the pages that are written: bytes grow by as much with every further one."""


def test_a_page_stays_small(tmp_path: Path) -> None:
    few, more = (
        len(render(contents_of(tmp_path / str(n), n), None).encode("utf-8")) for n in (FEW, MORE)
    )
    by_layer = (more - few) / (MORE - FEW)
    assert by_layer > 20_000
    assert few + (LAYERS - FEW) * by_layer < MOST_BYTES
