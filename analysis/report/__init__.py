"""Write the report of a trace: tables, figures, one HTML page and the same numbers as JSON."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path

from moe_probe.analysis.figures.heatmap import relative_load
from moe_probe.analysis.figures.style import Absent, write
from moe_probe.analysis.gathering import Progress
from moe_probe.analysis.report.contents import Contents, gather
from moe_probe.analysis.report.page import render
from moe_probe.analysis.results import TABLES
from moe_probe.analysis.rules import default_rule
from moe_probe.analysis.settings import Settings
from moe_probe.analysis.tables.files import write_table
from moe_probe.errors import MoeProbeError, UsageError
from moe_probe.trace import Trace

__all__ = ["Contents", "gather", "write_report"]

_MANIFEST = "report.json"
_TABLES = tuple(f"tables/{name}.{kind}" for name in TABLES for kind in ("csv", "parquet"))
_FIGURE = "figures/relative_load.png"
_PAGE = (_FIGURE, "report.html")
_FILES = (_MANIFEST, *_TABLES, *_PAGE)


def write_report(
    trace: Trace,
    output: Path,
    settings: Settings | None = None,
    *,
    tables_only: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> tuple[Contents, list[Path]]:
    """Check and count a trace and write what was found.

    An earlier report in `output` is replaced; other files there are left alone.

    Args:
        trace: The trace; an unfinished one is reported as that.
        output: The directory to write into.
        settings: What counts, in which order; the trace's default rule if None.
        tables_only: Leave out the page and the figures.
        force: Overwrite files of the same names that no report wrote.
        progress: Told after every group of layers.

    Returns:
        What the report says, and the paths written.

    Raises:
        UsageError: `output` has files of the same names that no report wrote.
        MoeProbeError: `output` cannot be written.
    """
    names = [name for name in _FILES if not (tables_only and name in _PAGE)]
    earlier = _earlier_files(output)
    if not force:
        _refuse_foreign(output, names, earlier)
    contents = gather(trace, settings or Settings(rule=default_rule(trace)), progress=progress)
    heatmap = None if tables_only else _heatmap(contents)
    if heatmap is None and _FIGURE in names:
        names.remove(_FIGURE)
    try:
        for name in earlier:
            (output / name).unlink(missing_ok=True)
        _write(contents, output, names, heatmap)
    except OSError as error:
        raise MoeProbeError(
            f"Cannot write the report into {output}: {error.strerror or error}. "
            "Choose another directory with --output."
        ) from error
    return contents, [output / name for name in names]


def _write(contents: Contents, output: Path, names: list[str], heatmap: bytes | None) -> None:
    for folder in {(output / name).parent for name in names}:
        folder.mkdir(parents=True, exist_ok=True)
    # First, so that a report that was cut short is known as one and can be replaced.
    manifest = {**contents.to_json(), "files": names}
    (output / _MANIFEST).write_text(
        json.dumps(manifest, indent=1, ensure_ascii=False, allow_nan=False) + "\n", "utf-8"
    )
    for name in TABLES:
        write_table(contents.analysis.table(name), output / f"tables/{name}.csv")
    if heatmap is not None:
        (output / _FIGURE).write_bytes(heatmap)
    if "report.html" in names:
        (output / "report.html").write_text(render(contents, heatmap), "utf-8")


def _heatmap(contents: Contents) -> bytes | None:
    """Draw the map of relative loads as PNG; None where nothing was counted."""
    buffer = BytesIO()
    try:
        write(relative_load(contents.analysis), buffer, "png")
    except Absent:
        return None
    return buffer.getvalue()


def _earlier_files(output: Path) -> list[str]:
    """Return which of our files an earlier report in this directory wrote."""
    try:
        manifest = json.loads((output / _MANIFEST).read_text("utf-8"))
        written = manifest["files"] if "moe_probe_report" in manifest else []
        return [name for name in _FILES if name in written]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _refuse_foreign(output: Path, names: list[str], earlier: list[str]) -> None:
    if output.exists() and not output.is_dir():
        raise UsageError(f"{output} is not a directory. Choose another one with --output.")
    foreign = [name for name in names if (output / name).exists() and name not in earlier]
    if foreign:
        raise UsageError(
            f"{output} has {', '.join(foreign)}, which no moe-probe report wrote. "
            "Choose another directory with --output, or use --force to overwrite."
        )
