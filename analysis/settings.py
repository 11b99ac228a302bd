"""What an analysis counts, in which order, and how often it resamples."""

from __future__ import annotations

from dataclasses import dataclass

from moe_probe.analysis.accumulators.gaps import WINDOWS
from moe_probe.analysis.orders import CANONICAL, Order
from moe_probe.analysis.rules import Rule


@dataclass(frozen=True)
class Settings:
    """Parameters of an analysis; the same settings give the same numbers."""

    rule: Rule = Rule.UNIQUE
    """Which tokens count."""
    order: Order = CANONICAL
    """In which order idle runs are measured; shuffled orders of the documents come beside it."""
    windows: tuple[int, ...] = WINDOWS
    """Lengths of idle windows, in tokens."""
    shuffles: int = 20
    """Shuffled orders of the documents."""
    replicates: int = 200
    """Bootstrap replicates over documents."""
    permutations: int = 200
    """Permutations of the documents' subjects."""
    seed: int = 0
    """First seed of shuffles, and that of permutations."""
    threads: int | None = None
    """Threads of the scan; all processors if None."""

    @property
    def shuffled(self) -> list[Order]:
        """The shuffled orders."""
        return [Order("shuffle-docs", self.seed + number) for number in range(self.shuffles)]
