"""The smallest layer there is, and sequences of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from moe_probe.trace import LayerSpec, Sequence, TraceWriter, open_trace

LAYER = LayerSpec(layer=0, num_experts=4, top_k=1)


def add(writer: TraceWriter, tokens: int) -> int:
    """Write a sequence whose experts say which sequence and token they are of."""
    number = writer.next_sequence_id()
    ids_TB = ((np.arange(tokens)[:, None] + number) % 4).astype(np.uint8)
    writer.write(Sequence(sequence_id=number, num_tokens=tokens), ids_TB)
    return number


def part_lengths(path: Path) -> list[int]:
    return [len(block) for block in open_trace(path).scan()]
