"""One pass over a trace fills every accumulator; each block of tokens is read and weighed once.

Shape suffixes: T tokens of a block, K slots.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np

from moe_probe.analysis.accumulators.counts import Counts, filled_layers
from moe_probe.analysis.rules import Rule, SequenceFacts, weigh
from moe_probe.trace import Block, Capture, Trace
from moe_probe.trace.counting import Stratum


@dataclass(frozen=True)
class Rows:
    """One block of stored tokens, with how often and as what each of them counts."""

    block: Block
    weight_T: np.ndarray
    """How often the token counts under the scan's rule: int64, 0 for one that does not."""
    stratum_T: np.ndarray
    """Index of the token's stratum in `strata`."""
    strata: Sequence[Stratum]

    def __len__(self) -> int:
        return len(self.block)

    def topk_ids(self, layer: int) -> np.ndarray:
        """Expert ids [T, K] of one layer."""
        return self.block.topk_ids(layer)


class Accumulator(Protocol):
    """Sums that blocks add to; those of two shards merge into that of the whole."""

    def update(self, rows: Rows) -> None:
        """Add a block."""

    def merge(self, other: Self) -> None:
        """Add another accumulator of the same kind, which stays as it is."""


def scan(
    trace: Trace,
    accumulators: Sequence[Accumulator],
    *,
    rule: Rule = Rule.UNIQUE,
    layers: list[int] | None = None,
) -> None:
    """Fill accumulators from the tokens of a trace.

    Memory is one block beside the accumulators, however long the trace is.

    Args:
        trace: The trace; its capture level keeps per-token rows.
        accumulators: What to fill.
        rule: The counting rule.
        layers: The layers the accumulators read; all if None.

    Raises:
        TraceError: the trace has no per-token rows, or is damaged.
    """
    for rows in read_rows(trace, rule=rule, layers=layers):
        for accumulator in accumulators:
            accumulator.update(rows)


def read_rows(trace: Trace, *, rule: Rule, layers: list[int] | None = None) -> Iterator[Rows]:
    """Yield the stored tokens of a trace block by block, weighed by a rule."""
    facts = SequenceFacts.from_trace(trace)
    for block in trace.scan(layers):
        located = facts.locate(block)
        yield Rows(block, weigh(rule, located), located.stratum_T, facts.strata)


def count(trace: Trace, rule: Rule = Rule.UNIQUE) -> Counts:
    """Count the selections of a trace by layer, expert, subject and segment.

    The trace's own counts tables answer at once where they are final and tell the number of
    tokens; only otherwise are its rows scanned.

    Raises:
        TraceError: the tables do not suffice and the trace has no per-token rows.
    """
    is_tabulated = not trace.is_recording and bool(filled_layers(trace.layers))
    if is_tabulated or trace.capture is Capture.COUNTS:
        return Counts.from_table(trace.counts, trace.layers, rule)
    counts = Counts(trace.layers)
    scan(trace, [counts], rule=rule)
    return counts
