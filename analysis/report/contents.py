"""What a report says, as data: the page, the terminal summary and the JSON all show this.

Shape suffixes: N experts of a layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from moe_probe import __version__
from moe_probe.analysis.accumulators.counts import Counts, LayerCounts
from moe_probe.analysis.quality import Check, check_trace, failures
from moe_probe.analysis.quality.suite import Evidence
from moe_probe.analysis.rules import Rule
from moe_probe.analysis.scan import count, scan
from moe_probe.analysis.source import Source
from moe_probe.analysis.tables import experts_table, layers_table, quality_table, to_records
from moe_probe.trace import Capture, Trace

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
    rule: Rule
    is_complete: bool
    """Whether the recording ended as planned and lacks nothing."""
    num_sequences: int
    counts: list[LayerCounts]
    layers: pd.DataFrame
    experts: pd.DataFrame
    checks: list[Check]

    @property
    def failed(self) -> list[Check]:
        """Checks that failed: while there is one, no finding is stated."""
        return failures(self.checks)

    @property
    def tokens(self) -> int:
        """T, which is the same in every layer."""
        return self.counts[0].tokens

    def findings(self) -> list[str]:
        """State the headline in words; empty where a check failed or nothing was counted."""
        table = self.layers
        if self.failed or table["max_vio"].isna().all():
            return []
        worst = table.iloc[int(np.nanargmax(table["max_vio"]))]
        share = (table["effective_experts"] / table["num_experts"]).mean()
        share_null = (table["effective_experts_null"] / table["num_experts"]).mean()
        idle, total = int(table["unseen"].sum()), int(table["num_experts"].sum())
        return [
            f"Most uneven: layer {int(worst['layer'])}, whose busiest expert carries "
            f"{worst['max_vio'] + 1:.2f} times a fair share "
            f"({worst['max_vio_null'] + 1:.2f} expected by chance).",
            f"On average a layer spreads its load like {share:.1%} of its experts sharing evenly "
            f"({share_null:.1%} expected by chance).",
            f"{idle:,} of {total:,} experts are idle on this corpus: no counted token selected "
            f"them ({table['unseen_null'].sum():.1f} expected by chance).",
        ]

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
            "is_complete": self.is_complete,
            "sequences": self.num_sequences,
            "tokens": self.tokens,
            "warnings": self.warnings(),
            "findings": self.findings(),
            "quality": to_records(quality_table(self.checks)),
            "layers": to_records(self.layers),
            "most_used": to_records(self.most_used()),
            "least_used": to_records(self.least_used()),
        }


def one_line(value: Any) -> str:
    """Return a fact as text on one line, without characters that would steer a terminal."""
    if isinstance(value, dict):
        value = list(value.values())
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def gather(trace: Trace, rule: Rule) -> Contents:
    """Check and count a trace; raises TraceError where it is damaged."""
    if trace.capture is Capture.COUNTS:
        counts, checks = count(trace, rule), check_trace(trace)
    else:
        source = Source(trace)
        evidence = Evidence(trace, source)
        counts = Counts(trace.layers, rule, source.index)
        scan(source, [counts, *evidence.accumulators])
        checks = evidence.checks()
    layers = list(counts.by_layer())
    options = trace.run.get("options")
    known = {**(options if isinstance(options, dict) else {}), **trace.run}
    return Contents(
        trace=str(trace.path),
        run={name: known[name] for name in _RUN_FACTS if known.get(name) is not None},
        rule=rule,
        is_complete=trace.run.get("status") == "complete",
        num_sequences=trace.sequences.num_rows,
        counts=layers,
        layers=layers_table(layers),
        experts=experts_table(layers),
        checks=checks,
    )
