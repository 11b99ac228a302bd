"""`moe-probe export`: selections, counts and loads as files for other tools."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moe_probe import output
from moe_probe.cli.report import RuleName
from moe_probe.errors import UsageError

if TYPE_CHECKING:
    from moe_probe.analysis.exports.choice import Choice


class Format(StrEnum):
    """Choices of --format."""

    SELECTIONS = "selections"
    LISTS = "lists"
    COUNTS = "counts"
    LOGICAL_COUNT = "logical-count"
    EPLB = "eplb"


SUFFIXES = {
    Format.SELECTIONS: (".parquet", ".csv"),
    Format.LISTS: (".parquet",),
    Format.COUNTS: (".parquet", ".csv"),
    Format.LOGICAL_COUNT: (".pt", ".json"),
    Format.EPLB: (".npy", ".csv"),
}


def export(
    trace: Annotated[Path, typer.Argument(help="A trace directory.", show_default=False)],
    file_format: Annotated[
        Format,
        typer.Option(
            "--format",
            help="selections: a row per token, layer and slot (.parquet, .csv); lists: a row per "
            "token and layer (.parquet); counts: a row per expert, subject and stretch of text "
            "(.parquet, .csv); logical-count: for SGLang's --init-expert-location (.pt, .json); "
            "eplb: a matrix of layers by experts (.npy, .csv).",
            show_default=False,
        ),
    ],
    path: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="The file to write; its ending decides.", show_default=False
        ),
    ],
    rule: Annotated[
        RuleName | None,
        typer.Option(
            help="Which tokens count, as in report. [as in report; logical-count and eplb: raw]"
        ),
    ] = None,
    layers: Annotated[
        str, typer.Option("--layers", help="Such as 3,5-7. [all MoE layers]", show_default=False)
    ] = "",
    subject: Annotated[
        list[str] | None,
        typer.Option("--subject", help="Only this one; may be repeated. [all]", show_default=False),
    ] = None,
    force: Annotated[bool, typer.Option("--force", "-f", help="Overwrite the file.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print what was written as one JSON document.")
    ] = False,
) -> None:
    """Write what a trace holds as one file for other tools.

    Example: moe-probe export my-trace --format selections -o selections.parquet --layers 3,5-7
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES[file_format]:
        endings = " or ".join(SUFFIXES[file_format])
        raise UsageError(f"--format {file_format} writes {endings}, not {path.name}.")
    from moe_probe.analysis.exports.choice import Choice
    from moe_probe.analysis.exports.files import new_file, refuse_path
    from moe_probe.analysis.reading.rules import Rule, default_rule
    from moe_probe.recording.stages import open_trace

    opened = open_trace(trace)
    refuse_path(path, opened.path, force=force)
    is_load = file_format in (Format.LOGICAL_COUNT, Format.EPLB)
    known = Rule.RAW if is_load else default_rule(opened)
    choice = Choice.of(opened, Rule(rule) if rule else known, layers, subject or ())
    with new_file(path) as temporary:
        written = _write(choice, file_format, temporary, suffix)
        refuse_path(path, opened.path, force=force)
    facts = {"file": str(path), "format": str(file_format), "rule": str(choice.rule), **written}
    if as_json:
        output.document({**facts, "layers": list(choice.layers)})
    else:
        shape = written.get("shape")
        of = f" of {shape[-1]} experts" if shape else ""
        output.result(f"{path}\n{written['rows']:,} rows{of}, counting rule {choice.rule}")
    _warn(choice, file_format)


def _write(choice: Choice, file_format: Format, path: Path, suffix: str) -> dict[str, Any]:
    from moe_probe.analysis.exports import counts, files, placement, rows

    if file_format is Format.EPLB:
        matrix = placement.expert_loads(choice)
        files.write_matrix(matrix, choice.layers, path, suffix)
        return {"rows": len(matrix), "shape": matrix.shape}
    if file_format is Format.LOGICAL_COUNT:
        save = files.write_json if suffix == ".json" else _torch_save()
        array = placement.logical_count(choice)
        save("logical_count", array, path)
        return {"rows": array.shape[1], "shape": array.shape}
    makers = {
        Format.SELECTIONS: rows.selections,
        Format.LISTS: rows.lists,
        Format.COUNTS: counts.count_table,
    }
    return {"rows": files.write_rows(makers[file_format](choice), path, suffix)}


def _torch_save() -> Any:
    """Return what saves a named array for torch.load; raises UsageError without torch."""
    try:
        import torch
    except ImportError as error:
        raise UsageError(
            "A .pt file needs torch, which is not installed. Write .json, which SGLang reads too, "
            'or run: pip install "moe-probe[hf]"'
        ) from error

    def save(name: str, array: Any, path: Path) -> None:
        with path.open("wb") as file:
            torch.save({name: torch.from_numpy(array)}, file)

    return save


def _warn(choice: Choice, file_format: Format) -> None:
    """Say what the numbers of a file do not tell."""
    run, trace = choice.trace.run, choice.trace
    if run.get("status") != "complete":
        output.note(f"{trace.path} is not a complete recording: see moe-probe check {trace.path}")
    if run.get("rows_not_kept"):
        output.note("A size limit left out rows of this trace. The file has what was kept.")
    if file_format is Format.LOGICAL_COUNT:
        from moe_probe.analysis.exports.placement import known_layers

        if known_layers(choice) is None:
            last = max(choice.layers)
            output.note(
                f"run.json does not say how many layers the model has. The file ends with {last}, "
                "the last one recorded."
            )
