"""What a report says, as data: the page, the terminal summary and the JSON all show this.

Shape suffixes: N experts of a layer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from moe_probe import __version__
from moe_probe.analysis.accumulators.counts import LayerCounts
from moe_probe.analysis.gathering import gather as scanned
from moe_probe.analysis.metrics.idle_passes import LEFT_OUT, WHY_LEFT_OUT
from moe_probe.analysis.quality import Check, failures
from moe_probe.analysis.reading.rules import Rule
from moe_probe.analysis.results import Analysis
from moe_probe.analysis.scan import Progress
from moe_probe.analysis.settings import Settings
from moe_probe.analysis.tables.files import quality_table, to_records
from moe_probe.trace import Trace

REPORT_VERSION = 1
NUM_RANKED = 10
_RUN_FACTS = (
    *("model", "model_revision", "task", "tasks", "num_fewshot", "limit", "sample_every"),
    *("engine", "device", "dtype", "capture", "start", "end", "status"),
)


@dataclass(frozen=True)
class Contents:
    """Everything a report shows."""

    trace: str
    """Where the trace lies."""
    run: dict[str, Any]
    """What was run: the facts of run.json that people ask for."""
    is_complete: bool
    """Whether the recording ended as planned and lacks nothing."""
    num_sequences: int
    analysis: Analysis
    figures_left_out: dict[str, str] = field(default_factory=dict)
    """Why figures that were asked for were not drawn, by their names."""

    @property
    def rule(self) -> Rule:
        return self.analysis.sums.settings.rule

    @property
    def checks(self) -> list[Check]:
        return self.analysis.sums.checks

    @property
    def counts(self) -> list[LayerCounts]:
        return list(self.analysis.sums.counts.by_layer())

    @property
    def layers(self) -> pd.DataFrame:
        return self.analysis.layers

    @property
    def experts(self) -> pd.DataFrame:
        return self.analysis.experts

    @property
    def failed(self) -> list[Check]:
        """Checks that failed: while there is one, no finding is stated."""
        return failures(self.checks)

    @property
    def tokens(self) -> int:
        """T, which is the same in every layer."""
        return self.counts[0].tokens

    def findings(self) -> list[str]:
        """Answer the three questions; empty where a check failed or nothing was counted."""
        if self.failed or not self.tokens:
            return []
        answers = self.analysis.headline
        return [answers.uneven, answers.least_used, answers.idle]

    def warnings(self) -> list[str]:
        """Say what makes this report preliminary or empty."""
        texts = []
        if not self.is_complete:
            status = self.run.get("status", "unknown")
            texts.append(f"This recording is not complete (status: {one_line(status)}).")
        if not self.tokens:
            texts.append(f"No token counts under the rule {self.rule}: {self.rule.description}.")
        if self.failed:
            names = ", ".join(check.check for check in self.failed)
            texts.append(f"Failed checks: {names}. Findings are withheld until they pass.")
        return texts

    def most_used(self) -> pd.DataFrame:
        """Return the experts with the highest relative load of their layer."""
        used = self.experts[self.experts["count"] > 0]
        return used.nlargest(NUM_RANKED, "relative_load")

    def least_used(self) -> pd.DataFrame:
        """Return those with the lowest; the never selected are all equal and left out."""
        used = self.experts[self.experts["count"] > 0]
        return used.nsmallest(NUM_RANKED, "relative_load")

    def to_json(self) -> dict[str, Any]:
        """Return the report as one JSON document."""
        return {
            "moe_probe_report": REPORT_VERSION,
            "version": __version__,
            "trace": self.trace,
            "run": self.run,
            "rule": str(self.rule),
            "order": str(self.analysis.sums.settings.order),
            "idle_unit": self.analysis.sums.settings.order.unit,
            "settings": _plain(self.analysis.sums.settings),
            "caption": self.analysis.caption,
            "is_complete": self.is_complete,
            "sequences": self.num_sequences,
            "tokens": self.tokens,
            "warnings": self.warnings(),
            "findings": self.findings(),
            "quality": to_records(quality_table(self.checks)),
            "layers": to_records(self.layers),
            "most_used": to_records(self.most_used()),
            "least_used": to_records(self.least_used()),
            **self.left_out_json(),
        }

    def left_out_json(self) -> dict[str, Any]:
        """Return what `to_json` says of figures that were not drawn, and of empty columns."""
        left_out = self.figures_left_out.items()
        columns = LEFT_OUT if self.analysis.sums.settings.in_passes else {}
        return {
            "figures_left_out": [{"figure": name, "reason": why} for name, why in left_out],
            "columns_left_out": [
                {"table": table, "column": name, "reason": WHY_LEFT_OUT}
                for table, names in columns.items()
                for name in names
            ],
        }


def _plain(settings: Settings) -> dict[str, Any]:
    """The settings that decide numbers."""
    names = ("windows", "shuffles", "replicates", "permutations", "seed")
    values = {name: getattr(settings, name) for name in names}
    return {**values, "windows": list(settings.windows)}


def one_line(value: Any) -> str:
    """Return a fact as text on one line, without characters that would steer a terminal."""
    if isinstance(value, dict):
        value = list(value.values())
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def gather(trace: Trace, settings: Settings, *, progress: Progress | None = None) -> Contents:
    """Check and analyse a trace; raises TraceError where it is damaged."""
    return contents_of(Analysis(scanned(trace, settings, progress=progress)))


def contents_of(analysis: Analysis) -> Contents:
    """Return what a report of an analysis says."""
    trace = analysis.sums.trace
    options = trace.run.get("options")
    known = {**(options if isinstance(options, dict) else {}), **trace.run}
    return Contents(
        trace=str(trace.path),
        run={name: known[name] for name in _RUN_FACTS if known.get(name) is not None},
        is_complete=trace.run.get("status") == "complete",
        num_sequences=trace.sequences.num_rows,
        analysis=analysis,
    )
