"""What of a trace is exported: which layers and subjects, by which counting rule.

Shape suffixes: S groups (task, subject, area).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property

import numpy as np

from moe_probe.analysis.reading.index import subject_names
from moe_probe.analysis.reading.rules import Rule
from moe_probe.analysis.reading.source import Source
from moe_probe.analysis.tables.origin import metadata, origin
from moe_probe.errors import UsageError
from moe_probe.trace import Capture, LayerSpec, Trace

Group = tuple[str, str, str]
_SPAN = re.compile(r"(\d{1,6})(?:-(\d{1,6}))?")


@dataclass(frozen=True)
class Choice:
    """Layers, subjects and counting rule of an export. Use `of`."""

    trace: Trace
    rule: Rule
    layers: dict[int, LayerSpec]
    """In ascending order."""
    subjects: tuple[str, ...]
    """Names as in a report's tables; all if empty."""

    @classmethod
    def of(cls, trace: Trace, rule: Rule, layers: str = "", subjects: Sequence[str] = ()) -> Choice:
        """Choose from a trace.

        Args:
            trace: The trace.
            rule: Which tokens count.
            layers: Such as "3,5-7", by the model's own index; all if empty.
            subjects: Names as in a report's tables; all if none.

        Raises:
            UsageError: the trace has no such layer, or `layers` says nothing that can be read.
        """
        if not trace.layers:
            raise UsageError(f"{trace.path} has no MoE layers: there is nothing to export.")
        numbers = sorted(trace.layers) if not layers else _parse(layers, trace)
        return cls(trace, rule, {n: trace.layers[n] for n in numbers}, tuple(subjects))

    @property
    def has_rows(self) -> bool:
        return self.trace.capture is not Capture.COUNTS

    @property
    def has_weights(self) -> bool:
        return self.trace.capture is Capture.WEIGHTS

    @cached_property
    def source(self) -> Source:
        """The trace's rows; raises TraceError where they are damaged."""
        return Source(self.trace)

    @property
    def metadata(self) -> dict[str, str]:
        """What a Parquet file says of itself; its rows have an order, its numbers none."""
        return metadata(origin(self.trace.path.resolve().name, self.rule))

    def wants_S(self, groups: Sequence[Group]) -> np.ndarray:
        """Whether each group was chosen: bool [S]; raises UsageError for an unknown subject."""
        names = subject_names(groups)
        for subject in self.subjects:
            if subject not in names:
                near = get_close_matches(subject, names) or sorted(names)[:5]
                raise UsageError(
                    f"{self.trace.path} has no subject {subject!r}. "
                    f"It has {len(names)}, such as {', '.join(map(repr, near))}."
                )
        return np.array([not self.subjects or name in self.subjects for name in names], bool)


def _parse(text: str, trace: Trace) -> list[int]:
    """Read "3,5-7": a span takes the layers that there are, a number must be one."""
    found: set[int] = set()
    known = sorted(trace.layers)
    for part in text.split(","):
        match = _SPAN.fullmatch(part.strip())
        if not match:
            raise UsageError(f"{part!r} in --layers is no layer and no span. Write 3 or 5-7.")
        first, last = int(match[1]), int(match[2] or match[1])
        span = {layer for layer in known if first <= layer <= last}
        if not span:
            raise UsageError(f"{trace.path} has no MoE layer {part.strip()}: {_spans(known)}.")
        found |= span
    return sorted(found)


def _spans(layers: Sequence[int]) -> str:
    """Write layers as `_parse` reads them."""
    spans: list[list[int]] = []
    for layer in layers:
        if spans and spans[-1][1] == layer - 1:
            spans[-1][1] = layer
        else:
            spans.append([layer, layer])
    return "it has " + ",".join(f"{a}-{b}" if a < b else str(a) for a, b in spans)
