"""The summary that `moe-probe report` prints, 80 columns wide: colour and rules for a terminal,
plain text for anything else.

Every text is put in as `Text`, which no markup inside it can change.

Shape suffixes: L layers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from io import StringIO
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from moe_probe.analysis.report.contents import Contents, one_line
from moe_probe.analysis.tables.layers import INDICES

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

_WIDTH = 80
_MAX_FACT = 300
_NUM_RANKED = 5
_SHOWN = ("max_vio", "cv", "gini", "effective_experts", "unseen")
_NAMES = {"max_vio": "MaxVio", "cv": "CV", "gini": "Gini", "effective_experts": "effective experts"}


def summary(contents: Contents, *, styled: bool = False) -> list[str]:
    """Return the lines of the summary: what was run, whether it is sound, what was found.

    Args:
        contents: Of the report.
        styled: With colours and rules, for a terminal; otherwise letters only.
    """
    from rich.console import Console

    console = Console(
        file=StringIO(),
        width=_WIDTH,
        force_terminal=styled,
        color_system="standard" if styled else None,
        legacy_windows=False,
    )
    with console.capture() as captured:
        for part in _parts(contents, styled=styled):
            console.print(part, highlight=False)
    lines = captured.get().splitlines()
    return lines if styled else [line.rstrip() for line in lines]


def _parts(contents: Contents, *, styled: bool) -> Iterator[RenderableType]:
    yield _facts(contents)
    yield ""
    if soundness := list(_soundness(contents)):
        yield _listed(soundness)
        yield ""
    if findings := contents.findings():
        yield _listed(("-", finding, "") for finding in findings)
        yield ""
    yield _indices(contents, styled=styled)
    yield _text(contents.analysis.caption, "dim")
    yield ""
    yield _ranking(contents, styled=styled)
    if idle := int((contents.experts["count"] == 0).sum()) if contents.tokens else 0:
        which = f"{idle:,} experts that no counted token selected are equal, and"
        if idle == 1:
            which = "One expert that no counted token selected is"
        yield _text(f"{which} not ranked.")


def _facts(contents: Contents) -> Table:
    sizes = Counter((spec.num_experts, spec.top_k) for spec in (c.spec for c in contents.counts))
    (experts, top_k), _ = sizes.most_common(1)[0]
    most = "" if len(sizes) == 1 else "mostly "
    if any(c.assignments < c.tokens * c.spec.top_k for c in contents.counts):
        most += "up to "
    facts: dict[str, Any] = {
        **{name: contents.run[name] for name in ("model", "task", "tasks") if name in contents.run},
        "trace": contents.trace,
        "layers": f"{len(contents.counts)} MoE layers, {most}{top_k} of {experts} experts a token",
        "counted": f"{contents.tokens:,} tokens in {contents.num_sequences:,} sequences",
        "rule": f"{contents.rule}: {contents.rule.description}",
        "quality": _quality(contents),
    }
    return _grid(
        (
            (_text(name, "bold"), _text(one_line(value)[:_MAX_FACT]))
            for name, value in facts.items()
        ),
        gap=2,
    )


def _quality(contents: Contents) -> str:
    """Say how the checks ended; completeness, the first of them, in its own words."""
    complete = next((check for check in contents.checks if check.check == "Q0"), None)
    number = Counter(str(check.status) for check in contents.checks)
    ends = ", ".join(f"{number[status]} {status}" for status in ("pass", "fail", "note", "skip"))
    state = "" if complete is None else complete.value or f"not known: {complete.reason}"
    return f"completeness {state}; checks: {ends}" if state else f"checks: {ends}"


def _soundness(contents: Contents) -> Iterator[tuple[str, str, str]]:
    """Yield what speaks against the numbers; red where it takes the findings away."""
    for warning in contents.warnings():
        yield "!", warning, "red" if contents.failed else "yellow"
    for check in contents.failed:
        yield "!", f"{check.check} {check.name}: {check.value}, expected {check.expected}", "red"


def _listed(items: Iterable[tuple[str, str, str]]) -> Table:
    return _grid(((_text(mark, style), _text(text, style)) for mark, text, style in items), gap=1)


def _indices(contents: Contents, *, styled: bool) -> Table:
    """Tabulate the mean over layers, what chance gives, and the worst layer."""
    layers = contents.layers
    table = _table(("imbalance", "mean", "by chance", "worst", "layer"), styled=styled)
    for name in filter(_SHOWN.__contains__, INDICES):
        values_L = layers[name].to_numpy("float64", na_value=np.nan)
        if np.isnan(values_L).all():
            continue
        # Layers may have different numbers of experts.
        part_L = -values_L / layers["num_experts"] if name == "effective_experts" else values_L
        worst = int(np.nanargmax(part_L))
        table.add_row(
            _NAMES.get(name, f"{name} experts"),
            _number(np.nanmean(values_L)),
            _number(layers[f"{name}_null"].mean()),
            _number(values_L[worst]),
            str(layers["layer"].iloc[worst]),
        )
    return table


def _ranking(contents: Contents, *, styled: bool) -> Table:
    """Tabulate the ends of the ranking by relative load."""
    in_passes = contents.analysis.sums.settings.in_passes
    header = ("experts", "layer", "expert", "load", "95% interval", "longest idle run")
    table = _table(header, styled=styled)
    for title, experts in (
        ("most used", contents.most_used()),
        ("least used", contents.least_used()),
    ):
        for expert in experts.head(_NUM_RANKED).to_dict("records"):
            idle = expert["longest_idle"]
            table.add_row(
                title,
                f"{expert['layer']}",
                f"{expert['expert']}",
                _load(expert["relative_load"]),
                f"{_load(expert['ci_low'])} to {_load(expert['ci_high'])}",
                "-" if pd.isna(idle) else f"{idle:,.0f}{_passes(idle) if in_passes else ''}",
            )
    return table


def _grid(rows: Iterable[tuple[Text, Text]], *, gap: int) -> Table:
    """Lay out names or marks, and beside them texts that wrap."""
    from rich.table import Table

    grid = Table.grid(padding=(0, gap, 0, 0), pad_edge=False)
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for row in rows:
        grid.add_row(*row)
    return grid


def _table(header: Iterable[str], *, styled: bool) -> Table:
    """Start a table of numbers to the right of their names."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    box = SIMPLE_HEAD if styled else None
    table = Table(box=box, show_edge=False, pad_edge=False, padding=(0, 1), header_style="bold")
    first, *rest = header
    table.add_column(first, no_wrap=True)
    for name in rest:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _passes(number: float) -> str:
    return " pass" if number == 1 else " passes"


def _number(value: float) -> str:
    return "-" if pd.isna(value) else f"{value:.3f}"


def _load(value: float) -> str:
    # Three digits: the least used lie far below 0.001.
    return "-" if pd.isna(value) else f"{value:.3g}"


def _text(value: Any, style: str = "") -> Text:
    from rich.text import Text

    return Text(one_line(value), style=style)
