"""The tidy tables of a report. Their column names are a public interface.

Shape suffixes: N experts of a layer.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from moe_probe.analysis.accumulators.counts import LayerCounts
from moe_probe.analysis.metrics import imbalance
from moe_probe.analysis.metrics.frequency import relative_load, selection_frequency
from moe_probe.analysis.quality import Check
from moe_probe.analysis.statistics.nulls import expected_indices

INDICES = (
    "max_vio",
    "cv",
    "gini",
    "entropy",
    "effective_experts",
    "kl_uniform",
    "total_variation",
    "unseen",
)
"""Imbalance indices of the `layers` table, each with its `<name>_null` beside it."""


def experts_table(layers: Iterable[LayerCounts]) -> pd.DataFrame:
    """Tabulate every routed expert.

    Returns:
        layer  the model's own layer index
        expert  index in that layer
        count  selections
        frequency  p, share of tokens that select it; null without tokens
        relative_load  r, load over fair share; null without tokens
    """
    tables = [
        pd.DataFrame(
            {
                "layer": counts.spec.layer,
                "expert": np.arange(counts.spec.num_experts),
                "count": counts.counts_N,
                "frequency": selection_frequency(counts.counts_N, counts.tokens),
                "relative_load": relative_load(counts.counts_N),
            }
        )
        for counts in layers
    ]
    return pd.concat(tables, ignore_index=True)


def layers_table(layers: Iterable[LayerCounts]) -> pd.DataFrame:
    """Tabulate every MoE layer.

    Returns:
        layer, num_experts, top_k  from the trace
        tokens, assignments  T and A, counted by the rule in force
        max_vio, cv, gini, entropy (nats), effective_experts, kl_uniform (nats),
        total_variation, unseen (experts)  each followed by `<name>_null`, its expectation if T
            tokens chose their experts uniformly at random; null without tokens
    """
    rows = [_layer_row(counts) for counts in layers]
    return pd.DataFrame(rows).astype({"unseen": "Int64"})


def quality_table(checks: Iterable[Check]) -> pd.DataFrame:
    """Tabulate the checks: check, name, status, value, expected, reason (why one was skipped)."""
    return pd.DataFrame([asdict(check) for check in checks])


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """Write a table as CSV; null is an empty field."""
    table.to_csv(path, index=False, lineterminator="\n")


def to_records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows for JSON, which has no NaN: null is None."""
    plain = table.astype(object).where(table.notna(), None)
    return [{str(name): value for name, value in row.items()} for row in plain.to_dict("records")]


def _layer_row(counts: LayerCounts) -> dict[str, Any]:
    spec = counts.spec
    row: dict[str, Any] = {
        "layer": spec.layer,
        "num_experts": spec.num_experts,
        "top_k": spec.top_k,
        "tokens": counts.tokens,
        "assignments": counts.assignments,
    }
    null = expected_indices(spec.num_experts, spec.top_k, counts.tokens)
    for name in INDICES:
        row[name] = float(getattr(imbalance, name)(counts.counts_N))
        row[f"{name}_null"] = getattr(null, name)
    return row
