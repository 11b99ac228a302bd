"""`moe-probe report`: numbers, plots and one HTML file from a trace."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from moe_probe import output


class RuleName(StrEnum):
    """Choices of --rule; the analysis has the rules themselves, and numpy with them."""

    UNIQUE = "unique"
    RAW = "raw"
    QUESTION = "question"


def report(
    trace: Annotated[Path, typer.Argument(help="A trace directory.", show_default=False)],
    output_directory: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Where to write. Default: TRACE/report."),
    ] = None,
    rule: Annotated[
        RuleName | None,
        typer.Option(
            help="Which tokens count: unique, every distinct context once; raw, every token the "
            "model ran; question, unique without the few-shot prefix. [unique; live traffic: raw]"
        ),
    ] = None,
    tables_only: Annotated[
        bool, typer.Option("--tables-only", help="Leave out the page and the figures.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", "-f", help="Overwrite files that no report wrote.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the numbers as one JSON document.")
    ] = False,
) -> None:
    """Write the numbers, plots and one HTML file of a trace.

    An unfinished recording is reported as that. An earlier report in the same place is replaced.

    Example: moe-probe report my-trace --rule question -o my-report
    """
    from moe_probe.analysis.report import write_report
    from moe_probe.analysis.report.terminal import summary
    from moe_probe.analysis.rules import Rule, default_rule
    from moe_probe.recording.stages import open_trace

    directory, opened = output_directory or trace / "report", open_trace(trace)
    chosen = default_rule(opened) if rule is None else Rule(rule)
    contents, paths = write_report(opened, directory, chosen, tables_only=tables_only, force=force)
    if as_json:
        output.document({**contents.to_json(), "files": [str(path) for path in paths]})
    else:
        for line in summary(contents):
            output.result(line)
        output.result()
        for path in paths:
            output.result(str(path))
    if contents.failed:
        output.note(f"Next: moe-probe check {trace}")
    elif not tables_only:
        output.note(f"Next: open {directory / 'report.html'} in a browser")
