"""One pass over a trace fills every accumulator, by whichever counting rules they follow.

Shape suffixes: T tokens of a block, K slots.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, Self

import numpy as np

from moe_probe.analysis.accumulators.counts import Counts
from moe_probe.analysis.rules import Located, Rule, SequenceFacts, weigh
from moe_probe.trace import Block, Capture, Trace
from moe_probe.trace.counting import Stratum


@dataclass(frozen=True)
class Rows:
    """One block of stored tokens, with what they belong to and how often each counts."""

    block: Block
    located: Located
    _weights: dict[Rule, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.block)

    @property
    def strata(self) -> Sequence[Stratum]:
        """All strata of the trace."""
        return self.located.facts.strata

    @property
    def stratum_T(self) -> np.ndarray:
        """Index of each token's stratum in `strata`."""
        return self.located.stratum_T

    def weight_T(self, rule: Rule) -> np.ndarray:
        """How often each token counts under a rule: int64, 0 for one that does not."""
        if rule not in self._weights:
            self._weights[rule] = weigh(rule, self.located)
        return self._weights[rule]

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
    trace: Trace, accumulators: Sequence[Accumulator], *, layers: list[int] | None = None
) -> None:
    """Fill accumulators from the tokens of a trace.

    Memory is one block beside the accumulators, however long the trace is.

    Args:
        trace: The trace; its capture level keeps per-token rows.
        accumulators: What to fill; one that counts tokens carries its own counting rule.
        layers: The layers the accumulators read; all if None.

    Raises:
        TraceError: the trace has no per-token rows, or is damaged.
    """
    for rows in read_rows(trace, layers=layers):
        for accumulator in accumulators:
            accumulator.update(rows)


def read_rows(trace: Trace, *, layers: list[int] | None = None) -> Iterator[Rows]:
    """Yield the stored tokens of a trace block by block."""
    facts = SequenceFacts.from_trace(trace)
    for block in trace.scan(layers):
        yield Rows(block, facts.locate(block))


def count(trace: Trace, rule: Rule = Rule.UNIQUE) -> Counts:
    """Count the selections of a trace by layer, expert, subject and segment.

    The rows are scanned where there are any, the counts tables are read where there are none. Of a
    trace with a size limit that is the part whose rows were kept.

    Raises:
        TraceError: the trace is damaged, or has neither rows nor tables that suffice.
    """
    if trace.capture is Capture.COUNTS:
        return Counts.from_tables(trace, rule)
    counts = Counts(trace.layers, rule)
    scan(trace, [counts])
    return counts
