"""Write the report of a trace: tables, figures, one HTML page and the same numbers as JSON."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

from moe_probe.analysis.figures import FIGURES, KINDS
from moe_probe.analysis.reading.rules import default_rule
from moe_probe.analysis.report.contents import Contents, gather
from moe_probe.analysis.report.drawing import Drawers
from moe_probe.analysis.report.folder import Folder
from moe_probe.analysis.report.page import render
from moe_probe.analysis.report.page.data_documents import token_texts
from moe_probe.analysis.results import TABLES
from moe_probe.analysis.scan import Progress
from moe_probe.analysis.settings import Settings
from moe_probe.analysis.tables.files import write_table
from moe_probe.trace import Trace

__all__ = ["Contents", "gather", "write_report"]

_MANIFEST = "report.json"
_TABLES = tuple(f"tables/{name}.{kind}" for name in TABLES for kind in ("csv", "parquet"))
_FIGURES = {f"figures/{name}.{kind}": name for name in FIGURES for kind in KINDS}
_ON_PAGE = "relative_load"
# These take longest: begun last, one process would draw when all others are done.
_FIRST = (_ON_PAGE, "devices", "subject_tree")
_PAGE = (*_FIGURES, "report.html")
_FILES = (_MANIFEST, *_TABLES, *_PAGE)


def write_report(
    trace: Trace,
    output: Path,
    settings: Settings | None = None,
    *,
    figure_kinds: Collection[str] = ("png",),
    tables_only: bool = False,
    force: bool = False,
    progress: Progress | None = None,
    tokenizer: Path | None = None,
) -> tuple[Contents, list[Path]]:
    """Check and count a trace and write what was found.

    An earlier report in `output` is replaced; other files there are left alone.

    Args:
        trace: The trace; an unfinished one is reported as that.
        output: The directory to write into.
        settings: What counts, in which order; the trace's default rule if None.
        figure_kinds: As what files figures are written, of "png" and "svg"; none if empty.
        tables_only: Leave out the page and the figures.
        force: Overwrite files of the same names that no report wrote.
        progress: Told after every group of layers.
        tokenizer: A tokenizer.json, or a folder with one, for the text of tokens on the page; it
            needs the package tokenizers. Without it tokens are ids.

    Returns:
        What the report says, and the paths written.

    Raises:
        UsageError: `output` has files of the same names that no report wrote, or `tokenizer`
            cannot be read.
        MoeProbeError: `output` cannot be written.
    """
    kinds = () if tables_only else tuple(figure_kinds)
    names = [name for name in _FILES if not (tables_only and name in _PAGE)]
    names = [name for name in names if name not in _FIGURES or name.endswith(kinds)]
    folder = Folder(output, _FILES, _MANIFEST, "moe_probe_report", command="report")
    if not force:
        folder.refuse_foreign(names, force=force)
    if tokenizer is not None:
        # Before the scan, which takes long.
        token_texts([], tokenizer)
    chosen = settings or Settings(rule=default_rule(trace))
    with Drawers(1 if tables_only else chosen.threads) as drawers:
        contents = gather(trace, chosen, progress=progress)
        if not tables_only:
            # Before all else, since other processes draw while this one writes.
            drawers.begin(contents.analysis, _wanted(kinds))
        with folder.replaced():
            for place in {(output / name).parent for name in names}:
                place.mkdir(parents=True, exist_ok=True)
            said = contents.to_json()
            # First, so that a report that was cut short is known as one and can be replaced.
            _write_manifest({**said, "files": names}, output)
            for name in TABLES:
                write_table(contents.analysis.table(name), output / f"tables/{name}.csv")
            if not tables_only:
                drawn = drawers.drawn(_ON_PAGE)
                heatmap = None if isinstance(drawn, str) else drawn["png"]
                page = render(contents, heatmap, tokenizer=tokenizer)
                (output / "report.html").write_text(page, "utf-8")
                left_out = _write_figures(drawers, output, names)
                names = [name for name in names if _FIGURES.get(name) not in left_out]
                contents = replace(contents, figures_left_out=left_out)
            _write_manifest({**said, **contents.left_out_json(), "files": names}, output)
    return contents, [output / name for name in names]


def _wanted(kinds: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """Return what is to be drawn, in which order: the page waits for the first."""
    on_page = {_ON_PAGE: tuple({*kinds, "png"})}
    return {**dict.fromkeys((*_FIRST, *FIGURES), kinds), **on_page} if kinds else on_page


def _write_figures(drawers: Drawers, output: Path, names: list[str]) -> dict[str, str]:
    """Write those of the named files that are figures; returns why others were not drawn."""
    left_out = {}
    for file, name in _FIGURES.items():
        if file in names:
            files = drawers.drawn(name)
            if isinstance(files, str):
                left_out[name] = files
            else:
                (output / file).write_bytes(files[Path(file).suffix.removeprefix(".")])
    return left_out


def _write_manifest(manifest: dict[str, Any], output: Path) -> None:
    text = json.dumps(manifest, indent=1, ensure_ascii=False, allow_nan=False)
    (output / _MANIFEST).write_text(text + "\n", "utf-8")
