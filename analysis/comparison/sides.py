"""The traces that are compared: opened, named, and counted by one rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from moe_probe.analysis.reading.rules import Rule, default_rule
from moe_probe.analysis.reading.source import Source
from moe_probe.errors import TraceError, UsageError
from moe_probe.trace import Capture, Trace


@dataclass(frozen=True)
class CompareSettings:
    """Parameters of a comparison; the same settings give the same numbers."""

    rule: Rule = Rule.UNIQUE
    """Which tokens count."""
    replicates: int = 200
    """Bootstrap replicates over documents."""
    seed: int = 0
    """Of the bootstrap."""
    threads: int | None = None
    """Threads of the scan; all processors if None."""


@dataclass(frozen=True)
class Side:
    """One of the traces."""

    label: str
    """Its name in tables and figures; no other trace has it."""
    trace: Trace
    source: Source | None
    """Its rows; None where only counts were kept."""

    def corresponds(self, other: Side) -> bool:
        """Whether both have the same layers with as many experts each."""
        mine, theirs = (
            {layer: spec.num_experts for layer, spec in side.trace.layers.items()}
            for side in (self, other)
        )
        return mine == theirs


def open_sides(traces: Sequence[Trace]) -> list[Side]:
    """Read whose rows the traces have.

    Raises:
        UsageError: there are fewer than two.
        TraceError: one has no routing, or is damaged.
    """
    if len(traces) < 2:
        raise UsageError(
            f"A comparison needs two traces or more, and {len(traces)} was given. "
            "Name the reference first: moe-probe compare A B."
        )
    for trace in traces:
        if not trace.layers:
            raise TraceError(
                f"{trace.path} was recorded with --baseline: it has scores and no routing. Give "
                "its accuracy with --baseline-accuracy, and traces of models with experts."
            )
    labels = distinct_labels([trace.path for trace in traces])
    return [
        Side(label, trace, None if trace.capture is Capture.COUNTS else Source(trace))
        for label, trace in zip(labels, traces, strict=True)
    ]


def common_rule(traces: Sequence[Trace]) -> Rule:
    """Return the counting rule that all traces would be reported by; UsageError if they differ."""
    rules = {default_rule(trace): trace for trace in reversed(traces)}
    if len(rules) > 1:
        (one, first), (two, second), *_ = sorted(rules.items())
        raise UsageError(
            f"{first.path} is counted by the rule {one} and {second.path} by the rule {two}. "
            "Choose one for both with --rule, such as --rule raw."
        )
    return next(iter(rules))


def distinct_labels(paths: Sequence[Path]) -> list[str]:
    """Name folders by the fewest last parts of their paths that tell them apart.

    The same folder given again gets a number.
    """
    parts = [path.resolve().parts for path in paths]
    most = max(map(len, parts))
    names = [
        ["/".join(each[-number:]).replace("//", "/") for each in parts]
        for number in range(1, most + 1)
    ]
    chosen = next((each for each in names if len(set(each)) == len(set(parts))), names[-1])
    labels: list[str] = []
    for label in chosen:
        number = sum(known == label or known.startswith(f"{label} (") for known in labels)
        labels.append(f"{label} ({number + 1})" if number else label)
    return labels
