"""The summary that `moe-probe report` prints: plain text, 80 columns."""

from __future__ import annotations

import textwrap
from typing import Any

from moe_probe.analysis.report.contents import Contents
from moe_probe.analysis.tables import INDICES

_WIDTH = 80
_MAX_FACT = 300
_SHOWN = ("max_vio", "cv", "gini", "effective_experts", "unseen")
_NAMES = {"max_vio": "MaxVio", "cv": "CV", "gini": "Gini", "effective_experts": "effective experts"}


def summary(contents: Contents) -> list[str]:
    """Return the lines of the summary: what was run, whether it is sound, what was found."""
    lines = [
        *_facts(contents),
        "",
        *(line for text in contents.warnings() for line in _wrap(f"! {text}")),
        *(line for text in contents.findings() for line in _wrap(f"- {text}")),
        "",
        *_indices(contents),
    ]
    return [line.rstrip() for line in lines]


def printable(value: Any) -> str:
    """Return text on one line, without what would steer a terminal."""
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _facts(contents: Contents) -> list[str]:
    facts = {
        **{name: contents.run[name] for name in ("model", "task", "tasks") if name in contents.run},
        "trace": contents.trace,
        "layers": f"{len(contents.counts)} MoE layers",
        "counted": f"{contents.tokens:,} tokens in {contents.num_sequences:,} sequences",
        "rule": f"{contents.rule}: {contents.rule.description}",
    }
    return [
        line
        for name, value in facts.items()
        for line in _wrap(f"{name:<9}{printable(value)[:_MAX_FACT]}", indent=9)
    ]


def _indices(contents: Contents) -> list[str]:
    """Tabulate the mean over layers, the worst layer, and what chance gives."""
    table = contents.layers
    lines = [f"{'':<18}{'mean':>10}{'by chance':>12}{'worst':>10}{'layer':>8}"]
    for name in filter(_SHOWN.__contains__, INDICES):
        column = table[name].astype("float64")
        if column.isna().all():
            continue
        worst = column.idxmin() if name == "effective_experts" else column.idxmax()
        lines.append(
            f"{_NAMES.get(name, name):<18}{column.mean():>10.3f}"
            f"{table[f'{name}_null'].mean():>12.3f}{column[worst]:>10.3f}"
            f"{table['layer'][worst]:>8}"
        )
    return lines


def _wrap(text: str, *, indent: int = 2) -> list[str]:
    return textwrap.wrap(printable(text), _WIDTH, subsequent_indent=" " * indent)
