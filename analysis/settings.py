"""What an analysis counts, in which order, and how often it resamples."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from moe_probe.analysis.reading.orders import CANONICAL, PASSES, Order
from moe_probe.analysis.reading.rules import Rule
from moe_probe.errors import UsageError

MAX_WINDOW = 1 << 40
"""More tokens than any trace has: windows of this length are summed without overflow."""


@dataclass(frozen=True)
class Settings:
    """Parameters of an analysis; the same settings give the same numbers.

    Raises UsageError for a window that is shorter than 1 or longer than MAX_WINDOW.
    """

    rule: Rule = Rule.UNIQUE
    """Which tokens count."""
    order: Order = CANONICAL
    """In which order idle runs are measured; shuffled orders of the documents come beside it."""
    windows: tuple[int, ...] = ()
    """Lengths of idle windows in the order's unit; those of the order if none are given."""
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

    def __post_init__(self) -> None:
        for window in self.windows:
            if not 1 <= window <= MAX_WINDOW:
                raise UsageError(
                    f"An idle window cannot have {window} {self.order.unit}. Give a length from 1 "
                    f"to {MAX_WINDOW}."
                )
        object.__setattr__(self, "windows", self.windows or self.order.windows)

    @property
    def in_passes(self) -> bool:
        """Whether idle runs are counted in forward passes."""
        return self.order.unit == PASSES

    @property
    def of_tokens(self) -> Self:
        """The same in an order of tokens: for what is measured in them whatever the order."""
        return replace(self, order=CANONICAL, windows=()) if self.in_passes else self

    @property
    def shuffled(self) -> list[Order]:
        """The shuffled orders."""
        return [Order("shuffle-docs", self.seed + number) for number in range(self.shuffles)]
