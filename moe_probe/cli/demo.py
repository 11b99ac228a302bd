"""`moe-probe demo`: a trace and a report from what comes with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moe_probe import output
from moe_probe.cli.record import record
from moe_probe.cli.report import report


def demo(
    folder: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")] = Path("demo"),
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace an earlier demo.")] = False,
) -> None:
    """Record the bundled sample with the bundled model on the CPU and write the report.

    Takes a minute, no GPU and no network. Example: moe-probe demo -o demo
    """
    trace = folder / "trace"
    record(model="tiny-moe", task=["mmlu_sample"], device="cpu", output_path=trace, force=force)
    report(trace, output_directory=folder / "report", force=force)
    output.result(f"Open {folder / 'report' / 'report.html'}")
