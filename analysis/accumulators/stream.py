"""What accumulators share whose sums depend on the order of tokens: shards are cuts of one stream.

Shape suffixes: T rows, P pieces.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from moe_probe.analysis.accumulators.base import Arrays, LayerAccumulator
from moe_probe.analysis.reading.index import TraceIndex
from moe_probe.analysis.reading.rules import Rule
from moe_probe.errors import UsageError
from moe_probe.trace import LayerSpec


class StreamAccumulator(LayerAccumulator):
    """One of tokens in recording order: `bounds` int64 [2] says which of the stream a shard has.

    Args:
        layers: The layers to fill.
        rule: Which tokens count.
        index: Of the trace.
        before: Counted tokens of the stream before this shard.
    """

    _before = 0

    def __init__(
        self, layers: Mapping[int, LayerSpec], rule: Rule, index: TraceIndex, *, before: int = 0
    ) -> None:
        self._before = before
        super().__init__(layers, rule, index)

    def nowhere(self) -> np.ndarray:
        """Return `bounds` before anything is added."""
        return np.full(2, self._before, np.int64)


def joined_bounds(mine: Arrays, theirs: Arrays) -> np.ndarray:
    """Return `bounds` int64 [2], the tokens that two shards have of one stream, ours before theirs.

    Raises ValueError if theirs do not follow ours.
    """
    (begin, seam), (start, stop) = mine["bounds"].tolist(), theirs["bounds"].tolist()
    if start != seam:
        raise ValueError(
            f"a shard with before={start} does not follow the first {seam} tokens of the stream; "
            f"fill it with before={seam}"
        )
    return np.array([begin, stop], np.int64)


def refuse_repeats(weight: np.ndarray, what: str, rule: Rule, use: str = "the rule unique") -> None:
    """Raise UsageError if some rows count more than once.

    Args:
        weight: How often each row or piece counts, [T] or [P].
        what: What cannot be told of such rows.
        rule: That counts them.
        use: What to use instead.
    """
    if (weight > 1).any():
        raise UsageError(
            f"{what} need every token once, but this trace stores tokens once that the model ran "
            f"several times, and the rule {rule} counts them all. Use {use}."
        )
