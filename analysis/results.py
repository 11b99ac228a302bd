"""A trace's numbers as DataFrames: what notebooks and the report read.

    >>> from moe_probe.analysis import analyse
    >>> found = analyse("my-trace", rule="question")
    >>> found.experts.sort_values("relative_load").head()

Shape suffixes: none; every table says what its rows are.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from moe_probe.analysis.findings.headline import Headline, headline
from moe_probe.analysis.gathering import gather
from moe_probe.analysis.reading.orders import Order
from moe_probe.analysis.reading.rules import Rule, default_rule
from moe_probe.analysis.scan import Progress
from moe_probe.analysis.settings import Settings
from moe_probe.analysis.sums import Sums
from moe_probe.analysis.tables import (
    devices,
    documents,
    experts,
    gates,
    idle_windows,
    indices,
    layers,
    placement,
    presence,
    structure,
    subjects,
    text_length,
)
from moe_probe.analysis.tables.files import quality_table
from moe_probe.analysis.tables.origin import label, origin
from moe_probe.trace import Trace, open_trace

TABLES: dict[str, Callable[[Sums], pd.DataFrame]] = {
    "experts": experts.experts_table,
    "layers": layers.layers_table,
    "indices": indices.indices,
    "idle_windows": idle_windows.idle_windows,
    "subjects": subjects.subjects,
    "specialization": subjects.specialization,
    "coactivation": structure.coactivation,
    "repeats": structure.repeats,
    "quality": lambda sums: quality_table(sums.checks),
    "divergence": subjects.divergence,
    "segments": subjects.segments,
    "rules": subjects.rules,
    "correctness": documents.correctness,
    "variance": documents.variance,
    "slots": structure.slots,
    "transitions": structure.transitions,
    "positions": structure.positions,
    "batches": text_length.batches,
    "devices": devices.devices,
    "placement": placement.placement,
    "coverage": text_length.coverage,
    "weights": gates.weights,
    "confidence": gates.confidence,
    "margins": gates.margins,
    "subject_coverage": presence.subject_coverage,
    "first_position": presence.first_position,
}
"""Every table by its name; its columns are described where it is made."""


class Analysis:
    """The tables of one trace, each made when it is first asked for."""

    def __init__(self, sums: Sums) -> None:
        self.sums = sums
        """What the scan left: accumulators, for metrics of your own."""
        self._tables: dict[str, pd.DataFrame] = {}

    def __repr__(self) -> str:
        return f"Analysis({str(self.sums.trace.path)!r}: {self.caption})"

    def _repr_html_(self) -> str:
        from moe_probe.analysis.report.notebook import to_html

        return to_html(self)

    @property
    def made(self) -> dict[str, pd.DataFrame]:
        """The tables that were asked for so far."""
        return dict(self._tables)

    def table(self, name: str) -> pd.DataFrame:
        """Return a table of `TABLES`, with `origin` in its attrs; KeyError for another name."""
        if name not in self._tables:
            self._tables[name] = TABLES[name](self.sums)
            label(self._tables[name], self.origin)
        return self._tables[name]

    @cached_property
    def origin(self) -> dict[str, Any]:
        """What every table says of itself in `.attrs["moe_probe"]`, and its Parquet file too."""
        settings, table = self.sums.settings, self.layers
        effective = table["tokens_effective"].median()
        return origin(
            self.sums.trace.path.resolve().name,
            settings.rule,
            settings.order,
            tokens=int(table["tokens"].max()) if len(table) else 0,
            tokens_effective=float(effective) if effective > 0 else None,
        )

    @property
    def caption(self) -> str:
        """What every figure made of these numbers has to say."""
        return f"{self.counted}; by chance: tokens that choose k of N experts uniformly"

    @property
    def counted(self) -> str:
        """What was counted: rule, order, T and, where it is known, T_eff."""
        said = self.origin
        effective = said["tokens_effective"]
        worth = f", worth {effective:,.0f} independent ones (T_eff)" if effective else ""
        return (
            f"counting rule {said['rule']}, token order {said['order']}{self._unit}, "
            f"T = {said['tokens']:,} tokens{worth}"
        )

    @property
    def _unit(self) -> str:
        settings, null = self.sums.settings, self.sums.pass_null
        if not settings.in_passes:
            return ""
        number = "" if null is None else f", {null.passes:,} on {_ranks(null.streams)}"
        return f" (idle runs in {settings.order.unit}{number})"

    @cached_property
    def headline(self) -> Headline:
        """The three answers in words; say them only if no check failed."""
        names = ("experts", "layers", "idle_windows", "subjects", "specialization")
        tables = [self.table(name) for name in names]
        return headline(*tables, unit=self.sums.settings.order.unit)

    @property
    def experts(self) -> pd.DataFrame:
        """One row per routed expert: load, interval, tier, idle runs."""
        return self.table("experts")

    @property
    def layers(self) -> pd.DataFrame:
        """One row per MoE layer: imbalance indices beside chance and noise."""
        return self.table("layers")

    @property
    def idle_windows(self) -> pd.DataFrame:
        """One row per expert and window length."""
        return self.table("idle_windows")

    @property
    def subjects(self) -> pd.DataFrame:
        """One row per expert and subject."""
        return self.table("subjects")

    @property
    def specialization(self) -> pd.DataFrame:
        """One row per layer: what routing tells about the subject."""
        return self.table("specialization")

    @property
    def coactivation(self) -> pd.DataFrame:
        """Pairs of experts that tokens select together."""
        return self.table("coactivation")

    @property
    def repeats(self) -> pd.DataFrame:
        """How often tokens repeat the experts of earlier ones."""
        return self.table("repeats")

    @property
    def quality(self) -> pd.DataFrame:
        """The quality checks, made before anything else is believed."""
        return self.table("quality")


def analyse(
    trace: Trace | str | Path,
    *,
    rule: Rule | str | None = None,
    order: Order | str = "canonical",
    windows: tuple[int, ...] = (),
    shuffles: int = 20,
    replicates: int = 200,
    permutations: int = 200,
    seed: int = 0,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Analysis:
    """Scan a trace once and return its tables.

    Args:
        trace: The trace, or where it lies.
        rule: Which tokens count: raw, unique, question, decision or no-template; unique if None,
            raw for live traffic.
        order: In which order idle runs are measured: canonical, execution, shuffle-docs:SEED or
            request-local; or forward-passes, the order of the engine's passes, which are their
            unit then.
        windows: Lengths of idle windows, in tokens or in forward passes. If there are none, 1,000,
            5,000, 10,000 and 50,000 tokens, or 10, 100, 1,000 and 10,000 passes.
        shuffles: Shuffled orders of the documents.
        replicates: Bootstrap replicates over documents.
        permutations: Permutations of the documents' subjects.
        seed: Of shuffles and permutations; the same seed gives the same numbers.
        threads: Threads of the scan; all processors if None.
        progress: Called with the number of layers done, and of all.

    Raises:
        TraceError: `trace` is not a trace, or damaged, or does not have what the rule needs.
        UsageError: there is no such order, or the trace cannot tell it.
        ValueError: there is no such rule.
    """
    opened = open_trace(trace)
    settings = Settings(
        rule=default_rule(opened) if rule is None else Rule(rule),
        order=order if isinstance(order, Order) else Order.parse(order),
        windows=tuple(sorted(windows)),
        shuffles=shuffles,
        replicates=replicates,
        permutations=permutations,
        seed=seed,
        threads=threads,
    )
    return Analysis(gather(opened, settings, progress=progress))


def _ranks(number: int) -> str:
    return "1 rank" if number == 1 else f"{number:,} ranks"
