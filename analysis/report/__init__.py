"""Write the report of a trace: tables, figures, one HTML page and the same numbers as JSON."""

from __future__ import annotations

import json
from collections.abc import Collection
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from moe_probe.analysis.figures import FIGURES, KINDS, figures, save
from moe_probe.analysis.figures.style import write
from moe_probe.analysis.report.contents import Contents, gather
from moe_probe.analysis.report.folder import Folder
from moe_probe.analysis.report.page import render
from moe_probe.analysis.report.page.data_documents import token_texts
from moe_probe.analysis.results import TABLES
from moe_probe.analysis.rules import default_rule
from moe_probe.analysis.scan import Progress
from moe_probe.analysis.settings import Settings
from moe_probe.analysis.tables.files import write_table
from moe_probe.trace import Trace

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Contents", "gather", "write_report"]

_MANIFEST = "report.json"
_TABLES = tuple(f"tables/{name}.{kind}" for name in TABLES for kind in ("csv", "parquet"))
_FIGURES = {f"figures/{name}.{kind}": name for name in FIGURES for kind in KINDS}
_ON_PAGE = "relative_load"
_PAGE = (*_FIGURES, "report.html")
_FILES = (_MANIFEST, *_TABLES, *_PAGE)


def write_report(
    trace: Trace,
    output: Path,
    settings: Settings | None = None,
    *,
    figure_kinds: Collection[str] = KINDS,
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
    contents = gather(trace, settings or Settings(rule=default_rule(trace)), progress=progress)
    # For readers without scripts the page needs one in any case.
    drawn = {} if tables_only else _drawn(contents, FIGURES if kinds else (_ON_PAGE,))
    names = [name for name in names if name not in _FIGURES or _FIGURES[name] in drawn]
    with folder.replaced():
        _write(contents, output, names, drawn, tokenizer)
    return contents, [output / name for name in names]


def _write(
    contents: Contents,
    output: Path,
    names: list[str],
    drawn: dict[str, Figure],
    tokenizer: Path | None,
) -> None:
    for folder in {(output / name).parent for name in names}:
        folder.mkdir(parents=True, exist_ok=True)
    # First, so that a report that was cut short is known as one and can be replaced.
    manifest = {**contents.to_json(), "files": names}
    (output / _MANIFEST).write_text(
        json.dumps(manifest, indent=1, ensure_ascii=False, allow_nan=False) + "\n", "utf-8"
    )
    for name in TABLES:
        write_table(contents.analysis.table(name), output / f"tables/{name}.csv")
    for name in filter(_FIGURES.get, names):
        save(drawn[_FIGURES[name]], output / name)
    if "report.html" in names:
        heatmap = _png(drawn[_ON_PAGE]) if _ON_PAGE in drawn else None
        page = render(contents, heatmap, tokenizer=tokenizer)
        (output / "report.html").write_text(page, "utf-8")


def _drawn(contents: Contents, wanted: Collection[str]) -> dict[str, Figure]:
    """Draw those of the wanted figures that the trace has the data for."""
    found = figures(contents.analysis, wanted)
    return {name: figure for name, figure in found if not isinstance(figure, str)}


def _png(figure: Figure) -> bytes:
    buffer = BytesIO()
    write(figure, buffer, "png")
    return buffer.getvalue()
