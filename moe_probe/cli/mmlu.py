"""`moe-probe mmlu`: MMLU without a network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moe_probe import output

app = typer.Typer(help="Use MMLU without a network.", no_args_is_help=True)


@app.callback()
def _mmlu() -> None:
    # With a callback, typer keeps `prepare` a subcommand although it is the only one.
    pass


@app.command()
def prepare(
    src: Annotated[
        Path, typer.Option(help="Folder of hendrycks CSV (dev/, test/) or of parquet files.")
    ],
    out: Annotated[Path, typer.Option(help="Folder to write; must not exist.")],
    force: Annotated[
        bool, typer.Option("--force", "-f", help="Replace an earlier copy in --out.")
    ] = False,
) -> None:
    """Write an offline copy of MMLU for `record --mmlu-dir`.

    Example: moe-probe mmlu prepare --src data/mmlu --out mmlu-offline
    """
    from moe_probe.evaluation.mmlu import prepare as write_copy

    sizes = write_copy(src, out, force=force)
    totals = {
        split: sum(splits.get(split, 0) for splits in sizes.values())
        for split in ("dev", "validation", "test")
    }
    counts = ", ".join(f"{total} {split}" for split, total in totals.items() if total)
    output.note(f"{len(sizes)} subjects, questions: {counts}.")
    output.result(str(out))
    output.note(f"Next: moe-probe record --task mmlu --mmlu-dir {out} --model tiny-moe --limit 4")
