"""Write a comparison: tables, one HTML page and the same numbers as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from moe_probe import __version__
from moe_probe.analysis.comparison import TABLES, Comparison
from moe_probe.analysis.report.compare.page import render
from moe_probe.analysis.report.compare.sentences import findings, notes
from moe_probe.analysis.tables.files import to_records, write_table
from moe_probe.errors import MoeProbeError, UsageError

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
    if output.exists() and not output.is_dir():
        raise UsageError(f"{output} is not a directory. Choose another one with --output.")
    earlier = _earlier_files(output)
    foreign = [name for name in FILES if (output / name).exists() and name not in earlier]
    if foreign and not force:
        raise UsageError(
            f"{output} has {', '.join(foreign[:3])}, which no moe-probe compare wrote. "
            "Choose another directory with --output, or use --force to overwrite."
        )


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
    try:
        for name in _earlier_files(output):
            (output / name).unlink(missing_ok=True)
        (output / "tables").mkdir(parents=True, exist_ok=True)
        # First, so that a comparison that was cut short is known as one and can be replaced.
        text = json.dumps(manifest, indent=1, ensure_ascii=False, allow_nan=False)
        (output / _MANIFEST).write_text(text + "\n", "utf-8", "replace")
        for name in TABLES:
            write_table(found.table(name), output / f"tables/{name}.csv")
        (output / "compare.html").write_text(page, "utf-8", "replace")
    except OSError as error:
        raise MoeProbeError(
            f"Cannot write the comparison into {output}: {error.strerror or error}. "
            "Choose another directory with --output."
        ) from error
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


def _earlier_files(output: Path) -> list[str]:
    """Return which of our files an earlier comparison in this directory wrote."""
    try:
        manifest = json.loads((output / _MANIFEST).read_text("utf-8"))
        written = manifest["files"] if "moe_probe_comparison" in manifest else []
        return [name for name in FILES if name in written]
    except (OSError, ValueError, KeyError, TypeError):
        return []
