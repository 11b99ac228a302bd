"""Everything that a comparison says, as tables and sentences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from moe_probe.analysis.comparison import (
    tables,
    tables_agreement,
    tables_margins,
    tables_subjects,
)
from moe_probe.analysis.comparison.accuracy import accuracy_table, answers
from moe_probe.analysis.comparison.baseline import Baseline, read_baseline, subjects_of
from moe_probe.analysis.comparison.gathering import gather
from moe_probe.analysis.comparison.sides import CompareSettings, common_rule, open_sides
from moe_probe.analysis.comparison.sums import Gathered, SideSums
from moe_probe.analysis.scan import Progress
from moe_probe.analysis.tables.origin import label, origin
from moe_probe.trace import Trace, open_trace


class Comparison:
    """The tables of a comparison, each made when it is first asked for."""

    def __init__(self, gathered: Gathered, baseline: Baseline | None = None) -> None:
        self.gathered = gathered
        """What the scan left."""
        self.baseline = baseline
        self.answered = [answers(side.side.trace) for side in gathered.sides]
        self._tables: dict[str, pd.DataFrame] = {}

    def __repr__(self) -> str:
        return f"Comparison({', '.join(self.labels)}; rule {self.gathered.settings.rule})"

    @property
    def labels(self) -> list[str]:
        """Names of the traces, the reference first."""
        return [side.side.label for side in self.gathered.sides]

    def table(self, name: str) -> pd.DataFrame:
        """Return a table of `TABLES`, with `origin` in its attrs; KeyError for another name."""
        if name not in self._tables:
            self._tables[name] = TABLES[name](self)
            label(self._tables[name], self.origin)
        return self._tables[name]

    @cached_property
    def origin(self) -> dict[str, Any]:
        """What every table says of itself; T and T_eff of each trace. No number has an order."""
        by_trace = self.table("indices").groupby("trace")
        tokens, effective = by_trace["tokens"].max(), by_trace["tokens_effective"].median()
        return origin(
            self.labels,
            self.gathered.settings.rule,
            tokens=[int(tokens[name]) for name in self.labels],
            tokens_effective=[
                float(effective[name]) if effective[name] > 0 else None for name in self.labels
            ],
        )


def compare(
    traces: Sequence[Trace | str | Path],
    settings: CompareSettings | None = None,
    *,
    baseline: str | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Scan traces and compare each with the first.

    Args:
        traces: Two or more, or where they lie; the reference first.
        settings: What counts; the rule that all traces are reported by if None.
        baseline: Accuracy of a dense model: a number, or a results file of lm-eval.
        progress: Called with the number of layers done, and of all.

    Raises:
        UsageError: fewer than two traces, or no common rule, or a baseline that is none.
        TraceError: one is not a trace, or damaged, or does not have what the rule needs.
    """
    opened = [open_trace(each) for each in traces]
    sides = open_sides(opened)
    chosen = settings or CompareSettings(rule=common_rule(opened))
    # First, since it is soon found to be none.
    beside = read_baseline(baseline, subjects_of(opened)) if baseline else None
    return Comparison(gather(sides, chosen, progress=progress), beside)


def _traces(found: Comparison) -> pd.DataFrame:
    """Tabulate the traces.

    Returns:
        trace  label; the reference first
        path, model, engine, dtype, capture, status  from run.json; empty if not known
        documents, tokens  counted
        paired_documents  that the reference has too
        same_shape  whether layers and experts are those of the reference
        aligned_tokens  counted tokens of the reference that this trace has after the same context
        failed_checks  names of quality checks that failed; empty if none did
    """
    rows: list[dict[str, Any]] = []
    for number, side in enumerate(found.gathered.sides):
        pair = found.gathered.pairs[number - 1] if number else None
        rows.append(
            {
                "trace": side.side.label,
                "path": str(side.side.trace.path),
                **_facts(side),
                "documents": side.documents if side.layers else None,
                "tokens": max((each.tokens for each in side.counts.by_layer()), default=0),
                "paired_documents": pair.paired_documents if pair and pair.layers else None,
                "same_shape": pair.corresponds if pair else None,
                "aligned_tokens": pair.agreement.tokens if pair and pair.agreement else None,
                "failed_checks": ", ".join(check.check for check in side.failed),
            }
        )
    whole = dict.fromkeys(("documents", "paired_documents", "aligned_tokens"), "Int64")
    return pd.DataFrame(rows).astype({**whole, "same_shape": "boolean"})


def _facts(side: SideSums) -> dict[str, str]:
    run = side.side.trace.run
    engine = run.get("engine")
    names = [engine.get("name"), engine.get("version")] if isinstance(engine, dict) else [engine]
    facts = {"engine": " ".join(str(name) for name in names if name)}
    for name in ("model", "dtype", "capture", "status"):
        facts[name] = str(run.get(name) or "")
    order = ("model", "engine", "dtype", "capture", "status")
    return {name: facts[name] for name in order}


TABLES: dict[str, Callable[[Comparison], pd.DataFrame]] = {
    "traces": _traces,
    "layers": lambda found: tables.layers_table(found.gathered, found.table("experts")),
    "experts": lambda found: tables.experts_table(found.gathered),
    "subjects": lambda found: tables_subjects.subjects_table(found.gathered),
    "indices": lambda found: tables_subjects.indices_table(found.gathered),
    "agreement": lambda found: tables_agreement.agreement_table(found.gathered),
    "agreement_subjects": lambda found: tables_agreement.agreement_subjects(found.gathered),
    "agreement_positions": lambda found: tables_agreement.agreement_positions(found.gathered),
    "first_divergence": lambda found: tables_agreement.first_divergence(found.gathered),
    "differing_layers": lambda found: tables_agreement.differing_layers(found.gathered),
    "lost_slots": lambda found: tables_margins.lost_slots(found.gathered),
    "margins": lambda found: tables_margins.margins(found.gathered),
    "margin_bins": lambda found: tables_margins.margin_bins(found.gathered),
    "accuracy": lambda found: accuracy_table(found.labels, found.answered, found.baseline),
}
"""Every table by its name; its columns are described where it is made."""
