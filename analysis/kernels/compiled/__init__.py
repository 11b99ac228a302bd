"""The inner loops of the scan, compiled: a block of rows fills all tables while caches hold it.

Arguments and results are those of `plain`, where they are described.

The compiler keeps its results beside each file, and compiles a loop anew when its own file changes:
after changing one that a loop of another file calls, delete `__pycache__/*.nb*` here.
"""

from pathlib import Path

from moe_probe.analysis.kernels.compiled import notice
from moe_probe.analysis.kernels.compiled.batches import count_batches
from moe_probe.analysis.kernels.compiled.blocks import fill_blocks
from moe_probe.analysis.kernels.compiled.counting import count_flows, count_rows
from moe_probe.analysis.kernels.compiled.faults import inspect_rows
from moe_probe.analysis.kernels.compiled.filling import fill
from moe_probe.analysis.kernels.compiled.idle import (
    join_documents,
    join_longest,
    longest_absence,
)

__all__ = [
    "count_batches",
    "count_flows",
    "count_rows",
    "fill",
    "inspect_rows",
    "join_documents",
    "join_longest",
    "longest_absence",
    "were_compiled",
]


def were_compiled() -> bool:
    """Whether the disk has compiled loops, of this shape of layers or another."""
    # None where there is nowhere to keep them.
    folder, line = fill_blocks.stats.cache_path, fill_blocks.py_func.__code__.co_firstlineno
    return bool(folder) and any(Path(folder).glob(f"*.fill_blocks-{line}.*.nbi"))


notice.announce()
