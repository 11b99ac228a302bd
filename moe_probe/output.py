"""The one way to speak: results go to stdout, everything else to stderr."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any

from moe_probe.errors import MoeProbeError

_quiet = False


def set_quiet(quiet: bool) -> None:
    """Keep notes off stderr; warnings and errors stay."""
    global _quiet
    _quiet = quiet


def result(text: str = "") -> None:
    """Print a line of the result; raises MoeProbeError where standard output takes none."""
    if not _is_printable(text):
        name = sys.stdout.encoding
        text = text.encode(name, "backslashreplace").decode(name)
    try:
        print(text, file=sys.stdout, flush=True)
    except OSError as error:
        # What is left of the text would fail once more at the end.
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115
        # Where the reader of a pipe (`| head`) went away, the exit code still counts.
        if not isinstance(error, BrokenPipeError):
            raise MoeProbeError(
                f"Cannot write to standard output: {error.strerror or error}. "
                "Free some space, or have it written elsewhere."
            ) from error


def document(value: Any) -> None:
    """Print the one JSON document of a `--json` run."""
    text = json.dumps(value, ensure_ascii=False, indent=1, default=_plain)
    if not _is_printable(text):
        text = json.dumps(value, indent=1, default=_plain)
    result(text)


def places(paths: Iterable[Path], directory: Path) -> None:
    """Print where results lie: of many files in a folder of `directory`, the folder."""
    shown = [path if path.parent == directory else path.parent for path in paths]
    for place in dict.fromkeys(shown):
        result(str(place))


def note(text: str) -> None:
    """Tell progress, a path, or what to do next."""
    if not _quiet:
        print(text, file=sys.stderr, flush=True)


def error(text: str) -> None:
    """Tell why nothing, or not everything, was done."""
    print(f"{_paint('Error:', '31', sys.stderr)} {text}", file=sys.stderr, flush=True)


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print rows in aligned columns; numbers to the right."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(len(line[i]) for line in [list(header), *cells]) for i in range(len(header))]
    numeric = [
        bool(cells) and all(_is_number(line[i]) for line in cells) for i in range(len(header))
    ]
    for line in [list(header), *cells]:
        padded = [
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(line, widths, numeric, strict=True)
        ]
        result("  ".join(padded).rstrip())


def quantity(value: float, unit: str = "") -> str:
    """Write a count or a size for people: 9.8M, 1.5 GiB (unit "B" counts in powers of 1024)."""
    base, steps = (
        (1024.0, ["", "Ki", "Mi", "Gi", "Ti"])
        if unit == "B"
        else (1000.0, ["", "k", "M", "G", "T"])
    )
    step = 0
    while abs(value) >= base and step < len(steps) - 1:
        value, step = value / base, step + 1
    number = f"{value:.0f}" if step == 0 else f"{value:.1f}"
    return f"{number} {steps[step]}{unit}" if unit else f"{number}{steps[step]}"


def is_terminal(stream: IO[str]) -> bool:
    """Whether a stream may get colour and moving progress."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _is_printable(text: str) -> bool:
    """Whether standard output has an encoding for it: not for a path that is no UTF-8."""
    try:
        text.encode(sys.stdout.encoding or "utf-8", sys.stdout.errors or "strict")
    except UnicodeEncodeError:
        return False
    return True


def _paint(text: str, code: str, stream: IO[str]) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if is_terminal(stream) else text


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _is_number(text: str) -> bool:
    return text == "-" or text.replace(".", "", 1).replace("-", "", 1).replace("%", "").isdigit()


def _plain(value: Any) -> Any:
    if hasattr(value, "item"):
        return value.item()
    return str(value)
