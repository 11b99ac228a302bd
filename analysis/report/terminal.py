"""The summary that `moe-probe report` prints: plain text, 80 columns.

Shape suffixes: L layers.
"""

from __future__ import annotations

import textwrap
from typing import Any

import numpy as np

from moe_probe.analysis.report.contents import Contents, one_line
from moe_probe.analysis.tables.layers import INDICES

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


def _facts(contents: Contents) -> list[str]:
    facts: dict[str, Any] = {
        **{name: contents.run[name] for name in ("model", "task", "tasks") if name in contents.run},
        "trace": contents.trace,
        "layers": f"{len(contents.counts)} MoE layers",
        "counted": f"{contents.tokens:,} tokens in {contents.num_sequences:,} sequences",
        "rule": f"{contents.rule}: {contents.rule.description}",
    }
    return [
        line
        for name, value in facts.items()
        for line in _wrap(f"{name:<9}{one_line(value)[:_MAX_FACT]}", indent=9)
    ]


def _indices(contents: Contents) -> list[str]:
    """Tabulate the mean over layers, the worst layer, and what chance gives."""
    table = contents.layers
    lines = [f"{'':<18}{'mean':>10}{'by chance':>12}{'worst':>10}{'layer':>8}"]
    for name in filter(_SHOWN.__contains__, INDICES):
        values_L = table[name].to_numpy("float64", na_value=np.nan)
        if np.isnan(values_L).all():
            continue
        worst = int((np.nanargmin if name == "effective_experts" else np.nanargmax)(values_L))
        lines.append(
            f"{_NAMES.get(name, name):<18}{np.nanmean(values_L):>10.3f}"
            f"{table[f'{name}_null'].mean():>12.3f}{values_L[worst]:>10.3f}"
            f"{table['layer'].iloc[worst]:>8}"
        )
    return lines


def _wrap(text: str, *, indent: int = 2) -> list[str]:
    return textwrap.wrap(one_line(text), _WIDTH, subsequent_indent=" " * indent)
