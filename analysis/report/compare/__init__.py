"""Write a comparison: tables, one HTML page and the same numbers as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from moe_probe import __version__
from moe_probe.analysis.comparison import TABLES, Comparison
from moe_probe.analysis.report.compare.page import render
from moe_probe.analysis.report.compare.sentences import findings, notes
from moe_probe.analysis.report.folder import Folder
from moe_probe.analysis.tables.files import to_records, write_table

__all__ = ["FILES", "check_output", "to_json", "write_comparison"]

COMPARISON_VERSION = 1
_MANIFEST = "compare.json"
_SHOWN = ("traces", "layers", "agreement", "margins", "accuracy")
FILES = (
    _MANIFEST,
    *(f"tables/{name}.{kind}" for name in TABLES for kind in ("csv", "parquet")),
    "compare.html",
)


def check_output(output: Path, *, force: bool = False) -> None:
    """Refuse, before anything is scanned, a place where files of others would be overwritten.

    Raises UsageError.
    """
    # The first few of forty tables tell enough.
    _folder(output).refuse_foreign(FILES, force=force, most=3)


def write_comparison(found: Comparison, output: Path, *, force: bool = False) -> list[Path]:
    """Write what was found, and return the paths.

    An earlier comparison in `output` is replaced; other files there are left alone.

    Args:
        found: The comparison.
        output: The directory to write into.
        force: Overwrite files of the same names that no comparison wrote.

    Raises:
        UsageError: `output` has files of the same names that no comparison wrote.
        MoeProbeError: `output` cannot be written.
    """
    check_output(output, force=force)
    # Before anything is deleted.
    page, manifest = render(found), to_json(found)
    with _folder(output).replaced():
        (output / "tables").mkdir(parents=True, exist_ok=True)
        # First, so that a comparison that was cut short is known as one and can be replaced.
        text = json.dumps(manifest, indent=1, ensure_ascii=False, allow_nan=False)
        (output / _MANIFEST).write_text(text + "\n", "utf-8", "replace")
        for name in TABLES:
            write_table(found.table(name), output / f"tables/{name}.csv")
        (output / "compare.html").write_text(page, "utf-8", "replace")
    return [output / name for name in FILES]


def to_json(found: Comparison) -> dict[str, Any]:
    """Return the comparison as one JSON document; tables of experts and subjects are files."""
    settings = found.gathered.settings
    return {
        "moe_probe_comparison": COMPARISON_VERSION,
        "version": __version__,
        "reference": found.labels[0],
        "rule": str(settings.rule),
        "settings": {"replicates": settings.replicates, "seed": settings.seed},
        "baseline_accuracy": found.baseline.accuracy if found.baseline else None,
        "notes": notes(found),
        "findings": findings(found),
        **{name: to_records(found.table(name)) for name in _SHOWN},
        "files": list(FILES),
    }


def _folder(output: Path) -> Folder:
    return Folder(output, FILES, _MANIFEST, "moe_probe_comparison", command="compare")
