"""`moe-probe check`: whether a trace can be trusted."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moe_probe import output
from moe_probe.cli.process import prepare_analysis


def check(
    trace: Annotated[Path, typer.Argument(help="A trace directory.", show_default=False)],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the checks as one JSON document.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no hints.")] = False,
) -> None:
    """Check that a trace holds what the model did; exit code 1 if it does not.

    Example: moe-probe check my-trace
    """
    prepare_analysis()
    from moe_probe.analysis.quality import check_trace, failures
    from moe_probe.analysis.tables.files import quality_table, to_records
    from moe_probe.cli.progress import ScanProgress
    from moe_probe.recording.stages import open_trace

    output.set_quiet(quiet)
    opened = open_trace(trace)
    with ScanProgress(len(opened.layers), quiet=quiet) as progress:
        checks = check_trace(opened, progress=progress.update)
    failed = failures(checks)
    if as_json:
        records = to_records(quality_table(checks))
        output.document({"trace": str(trace), "passed": not failed, "checks": records})
    else:
        output.table(
            ["check", "status", "name", "value", "expected"],
            [
                [found.check, found.status, found.name, found.value or found.reason, found.expected]
                for found in checks
            ],
        )
    if failed:
        names = ", ".join(found.check for found in failed)
        output.error(
            f"{trace} fails {names}. Its numbers cannot be trusted: see what these checks find "
            "(quality in docs/metrics.md), mend that, and record again."
        )
        raise typer.Exit(1)
    output.note(f"Next: moe-probe report {trace}")
