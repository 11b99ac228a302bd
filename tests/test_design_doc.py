"""The page for developers names files, folders and links that exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "design.md"
_FENCE = re.compile(r"```.*?```", re.S)


def test_every_path_and_link_exists() -> None:
    text = _FENCE.sub("", PAGE.read_text("utf-8"))
    paths = re.findall(r"`([\w.]+/[\w./]*)`", text)
    # Folders of the analysis are named without it.
    inside = {f"{path.name}/" for path in (ROOT / "analysis").iterdir() if path.is_dir()}
    missing = [path for path in paths if not (path in inside or (ROOT / path).exists())]
    assert len(paths) > 20
    assert missing == []
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert links
    assert [link for link in links if not (PAGE.parent / link).is_file()] == []


def test_every_package_has_a_place_on_the_page() -> None:
    text = PAGE.read_text("utf-8")
    hidden = {"__pycache__", "kernels", "bundled"}
    for folder in ("analysis", "moe_probe"):
        for path in (ROOT / folder).iterdir():
            if path.is_dir() and not path.is_symlink() and path.name not in hidden:
                assert f"{path.name}/`" in text, path


def test_the_picture_names_each_box_once() -> None:
    (picture,) = re.findall(r"```mermaid\n(.*?)```", PAGE.read_text("utf-8"), re.S)
    boxes = re.findall(r"(\w+)(?:\[\(?\")", picture)
    assert len(boxes) == len(set(boxes))
    ends = re.findall(r"^\s+(\w+).*?-->(?:\|[^|]*\|)?\s*(\w+)", picture, re.M)
    assert {name for pair in ends for name in pair} == set(boxes)
