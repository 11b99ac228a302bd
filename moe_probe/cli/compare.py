"""`moe-probe compare`: what tells two traces or more apart."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moe_probe import output
from moe_probe.cli.process import prepare_analysis
from moe_probe.cli.report import RuleName


def compare(
    traces: Annotated[
        list[Path],
        typer.Argument(help="Two traces or more; the first is the reference.", show_default=False),
    ],
    output_directory: Annotated[
        Path, typer.Option("--output", "-o", help="Where to write.")
    ] = Path("comparison"),
    rule: Annotated[
        RuleName | None,
        typer.Option(help="Which tokens count, as in report. [unique; live traffic: raw]"),
    ] = None,
    baseline_accuracy: Annotated[
        str,
        typer.Option(
            "--baseline-accuracy",
            help="Accuracy of a dense model to show beside: a number from 0 to 1, or a results "
            "file of lm-eval.",
        ),
    ] = "",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the bootstrap over documents.")] = 0,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Threads of the scan. Default: all processors."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", "-f", help="Overwrite files that no comparison wrote.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the numbers as one JSON document.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no hints.")] = False,
) -> None:
    """Compare the expert loads, the selections and the accuracy of traces with the first.

    For two models, two tasks, base and instruct, bf16 and quantised, transformers and vLLM. Where
    the traces ran the same prompts, they are compared token by token.

    Example: moe-probe compare my-trace other-trace -o my-comparison
    """
    prepare_analysis()
    from moe_probe.analysis.comparison import CompareSettings
    from moe_probe.analysis.comparison import compare as compared
    from moe_probe.analysis.comparison.sides import common_rule
    from moe_probe.analysis.reading.rules import Rule
    from moe_probe.analysis.report.compare import check_output, to_json, write_comparison
    from moe_probe.analysis.report.compare.terminal import summary
    from moe_probe.cli.progress import ScanProgress
    from moe_probe.errors import UsageError
    from moe_probe.recording.stages import open_trace

    output.set_quiet(quiet)
    if len(traces) < 2:
        raise UsageError(
            "A comparison needs two traces or more. Name the reference first: moe-probe compare A B"
        )
    check_output(output_directory, force=force)
    opened = [open_trace(trace) for trace in traces]
    settings = CompareSettings(
        rule=common_rule(opened) if rule is None else Rule(rule), seed=seed, threads=threads
    )
    number = sum(len(trace.layers) for trace in opened)
    with ScanProgress(number, quiet=quiet) as progress:
        found = compared(opened, settings, baseline=baseline_accuracy, progress=progress.update)
        paths = write_comparison(found, output_directory, force=force)
    if as_json:
        output.document({**to_json(found), "files": [str(path) for path in paths]})
    else:
        for line in summary(found):
            output.result(line)
        output.result()
        output.places(paths, output_directory)
    output.note(f"Next: open {output_directory / 'compare.html'} in a browser")
