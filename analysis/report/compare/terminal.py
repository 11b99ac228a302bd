"""The summary that `moe-probe compare` prints: plain text, 80 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from moe_probe.analysis.comparison import Comparison
from moe_probe.analysis.report.compare.sentences import findings, notes
from moe_probe.analysis.report.contents import one_line

_WIDTH = 80
_MAX_FACT = 300
_MAX_NAME = 40
_ROWS = (
    ("layers", "divergence_bits", "divergence_noise_bits", "divergence, bits"),
    ("layers", "spearman", "spearman_resampled", "Spearman"),
    ("layers", "max_vio_difference", "max_vio_noise", "MaxVio less reference's"),
    ("agreement", "same_set", "repeated", "tokens with same experts"),
    ("agreement", "overlap", "overlap_null_own", "common experts"),
)


def summary(found: Comparison) -> list[str]:
    """Return the lines: what was compared, what limits it, what was found."""
    lines = list(_traces(found))
    rule = found.gathered.settings.rule
    lines += _wrap(f"{'rule':<11}{rule}: {rule.description}", indent=11)
    if texts := notes(found):
        lines += ["", *(line for text in texts for line in _wrap(f"! {text}"))]
    for label, said in findings(found).items():
        lines += ["", *_wrap(f"{one_line(label)} against {one_line(found.labels[0])}")]
        lines += [line for text in said for line in _wrap(f"- {text}")]
        lines += _layers(found, label)
    return [line.rstrip() for line in lines]


def _traces(found: Comparison) -> Iterator[str]:
    row: Any
    for number, row in enumerate(found.table("traces").itertuples()):
        facts = [fact for fact in (row.model, row.engine, row.dtype) if fact]
        size = f"{row.tokens:,} tokens"
        if pd.notna(row.documents):
            size += f" of {row.documents:,} documents"
        if pd.notna(row.aligned_tokens):
            size += f", {row.aligned_tokens:,} of the reference's among them"
        name = "reference" if number == 0 else "compared"
        text = ", ".join([*map(str, facts), size])
        label = one_line(row.trace)[:_MAX_NAME]
        yield from _wrap(f"{name:<11}{label}: {one_line(text)[:_MAX_FACT]}", indent=11)


def _layers(found: Comparison, label: str) -> Iterator[str]:
    """Tabulate means over layers and the layer that is furthest from the reference."""
    rows = []
    for name, column, beside, title in _ROWS:
        table = found.table(name)
        part = table[table["trace"] == label]
        values_L = part[column].to_numpy(np.float64) if len(part) else np.empty(0)
        if not np.isfinite(values_L).any():
            continue
        is_share = column in ("spearman", "same_set", "overlap")
        worst = int(np.nanargmin(values_L) if is_share else np.nanargmax(np.abs(values_L)))
        null = part[beside].mean()
        cells = (f"{value:.4g}" for value in (np.nanmean(values_L), null, values_L[worst]))
        mean, beside_it, furthest = (cell if cell != "nan" else "-" for cell in cells)
        layer = part["layer"].iloc[worst]
        rows.append(f"{title:<26}{mean:>12}{beside_it:>14}{furthest:>12}{layer:>8}")
    if rows:
        yield ""
        yield f"{'over layers':<26}{'mean':>12}{'noise/chance':>14}{'furthest':>12}{'layer':>8}"
        yield from rows


def _wrap(text: str, *, indent: int = 2) -> list[str]:
    return textwrap.wrap(one_line(text), _WIDTH, subsequent_indent=" " * indent)
