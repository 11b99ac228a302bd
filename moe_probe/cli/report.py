"""`moe-probe report`: numbers, plots and one HTML file from a trace."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from moe_probe import output
from moe_probe.cli.process import prepare_analysis


class RuleName(StrEnum):
    """Choices of --rule; the analysis has the rules themselves, and numpy with them."""

    UNIQUE = "unique"
    RAW = "raw"
    QUESTION = "question"
    DECISION = "decision"
    NO_TEMPLATE = "no-template"


class Figures(StrEnum):
    """Choices of --figures."""

    BOTH = "both"
    PNG = "png"
    SVG = "svg"
    NONE = "none"


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
            "model ran; question, unique without the few-shot prefix; decision, the last token of "
            "each prompt; no-template, unique without what all documents share. "
            "[unique; live traffic: raw]"
        ),
    ] = None,
    order: Annotated[
        str,
        typer.Option(
            help="In which order idle runs are measured: canonical, by subject and document; "
            "execution, as the engine ran; shuffle-docs:SEED; request-local, inside documents; "
            "forward-passes, the engine's passes, which idle runs are then counted in."
        ),
    ] = "canonical",
    window: Annotated[
        list[int] | None,
        typer.Option(
            min=1,
            help="Length of an idle window in tokens, or forward passes in their order; give it "
            "several times for several. [1000 5000 10000 50000; passes: 10 100 1000 10000]",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, help="Seed of shuffled orders and of permutations.")
    ] = 0,
    threads: Annotated[
        int | None,
        typer.Option(
            min=1, help="Threads of the scan, processes that draw. Default: all processors."
        ),
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            help="A tokenizer.json, or the folder of a model that has one: the page then shows "
            "tokens as text. Default: token ids.",
            show_default=False,
        ),
    ] = None,
    figures: Annotated[
        Figures,
        typer.Option(
            help="As what files figures are written; each kind takes as long again. The page has "
            "its own."
        ),
    ] = Figures.PNG,
    tables_only: Annotated[
        bool, typer.Option("--tables-only", help="Leave out the page and the figures.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", "-f", help="Overwrite files that no report wrote.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the numbers as one JSON document.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no hints.")] = False,
) -> None:
    """Write the numbers, plots and one HTML file of a trace.

    An unfinished recording is reported as that. An earlier report in the same place is replaced.

    Example: moe-probe report my-trace --rule question -o my-report
    """
    prepare_analysis()
    from moe_probe.analysis.reading.orders import Order
    from moe_probe.analysis.reading.rules import Rule, default_rule
    from moe_probe.analysis.report import write_report
    from moe_probe.analysis.report.terminal import summary
    from moe_probe.analysis.settings import Settings
    from moe_probe.cli.progress import ScanProgress
    from moe_probe.recording.stages import open_trace

    output.set_quiet(quiet)
    chosen_order = Order.parse(order)
    directory, opened = output_directory or trace / "report", open_trace(trace)
    settings = Settings(
        rule=default_rule(opened) if rule is None else Rule(rule),
        order=chosen_order,
        windows=tuple(sorted(set(window or ()))),
        seed=seed,
        threads=threads,
    )
    with ScanProgress(len(opened.layers), quiet=quiet) as progress:
        contents, paths = write_report(
            opened,
            directory,
            settings,
            figure_kinds={"both": ("png", "svg"), "none": ()}.get(figures, (figures,)),
            tables_only=tables_only,
            force=force,
            progress=progress.update,
            tokenizer=tokenizer,
        )
    if as_json:
        output.document({**contents.to_json(), "files": [str(path) for path in paths]})
    else:
        for line in summary(contents, styled=output.is_terminal(sys.stdout)):
            output.result(line)
        output.result()
        output.places(paths, directory)
    if contents.failed:
        output.note(f"Next: moe-probe check {trace}")
    elif not tables_only:
        output.note(f"Next: open {directory / 'report.html'} in a browser")
