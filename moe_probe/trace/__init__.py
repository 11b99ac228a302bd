"""The trace: the only thing capture and analysis share."""

from moe_probe.trace.blocks import Block
from moe_probe.trace.output import check_output
from moe_probe.trace.reader import Trace, open_trace
from moe_probe.trace.schema import ROUTER_SCALARS, SEGMENTS, Capture, LayerSpec, RowLayout, Sequence
from moe_probe.trace.spool import WriterStats
from moe_probe.trace.writer import TraceWriter

__all__ = [
    "ROUTER_SCALARS",
    "SEGMENTS",
    "Block",
    "Capture",
    "LayerSpec",
    "RowLayout",
    "Sequence",
    "Trace",
    "TraceWriter",
    "WriterStats",
    "check_output",
    "open_trace",
]
