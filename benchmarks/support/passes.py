"""Passes over a trace: decoding alone, counting by pyarrow and numpy alone, and the analysis.

All have the same number of threads; the first two read every column, the analysis what it needs.

Shape suffixes: P parts, K slots, L layers, N experts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.support.clocks import in_turn, seconds
from moe_probe.trace import Block, open_trace

THREADS = 2
# Rows of a layer whose ids stay in the cache while numpy widens them.
_BLOCK_ROWS = 8192


def decode(path: str) -> int:
    """Decode every column of every part, and drop it; returns the number of tokens."""
    with ThreadPoolExecutor(THREADS) as threads:
        return sum(threads.map(lambda part: len(_read(part)), _parts(path)))


def bincount(path: str) -> np.ndarray:
    """Counts int64 [L, N] as a careful script would make them, with pyarrow and numpy alone."""
    layers = open_trace(path).layers

    def count(part: Path) -> np.ndarray:
        block, counts = Block(_read(part), layers), []
        for layer, spec in layers.items():
            ids_TK, counts_N = block.topk_ids(layer), np.zeros(spec.num_experts, np.int64)
            for start in range(0, len(ids_TK), _BLOCK_ROWS):
                ids = ids_TK[start : start + _BLOCK_ROWS].ravel()
                counts_N += np.bincount(ids, minlength=spec.num_experts)
            counts.append(counts_N)
        return np.array(counts)

    with ThreadPoolExecutor(THREADS) as threads:
        counts_PLN = np.array(list(threads.map(count, _parts(path))))
    return np.asarray(counts_PLN.sum(axis=0))


def _parts(path: str) -> list[Path]:
    return sorted(Path(path, "routing").glob("*.parquet"))


def _read(part: Path) -> pa.Table:
    with pq.ParquetFile(part) as file:
        return file.read(use_threads=False)


def counts(path: str) -> np.ndarray:
    """Counts int64 [L, N] by the analysis, which also keeps them by subject and stretch of text."""
    from moe_probe.analysis.accumulators.counts import Counts
    from moe_probe.analysis.reading.rules import Rule
    from moe_probe.analysis.reading.source import Source
    from moe_probe.analysis.scan import scan

    source = Source(open_trace(path))
    accumulator = Counts(source.layers, Rule.RAW, source.index)
    scan(source, [accumulator], threads=THREADS)
    return np.array([layer.counts_N for layer in accumulator.by_layer()])


def core_scan(path: str) -> Any:
    """Counts by subject and slot, pairs, overlap with the token before, and idle runs."""
    from moe_probe.analysis.accumulators.counts import Counts
    from moe_probe.analysis.accumulators.documents import cluster_tokens
    from moe_probe.analysis.accumulators.gaps import Gaps
    from moe_probe.analysis.accumulators.locality import Overlaps
    from moe_probe.analysis.accumulators.structure import PairCounts, SlotCounts
    from moe_probe.analysis.kernels import kernels_for
    from moe_probe.analysis.reading.rules import Rule
    from moe_probe.analysis.reading.source import Source
    from moe_probe.analysis.scan import chunks, scan_layers

    source, rule = Source(open_trace(path)), Rule.UNIQUE
    common = source.layers, rule, source.index
    most = int(cluster_tokens(source, rule).max())
    overlaps = Overlaps(*common, lags=(1,))
    kept: list[Any] = [Counts(*common), SlotCounts(*common), PairCounts(*common), overlaps]
    kernels = kernels_for(source.num_selections)

    def take(some: Sequence[int]) -> None:
        gaps = Gaps({n: source.layers[n] for n in some}, rule, source.index, most=most)
        scan_layers(source, [*kept, gaps], some, kernels)

    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(take, chunks(list(source.layers), THREADS)))
    return kept


def default_scan(path: str) -> Any:
    """All accumulators of a report, those of the quality checks too."""
    from moe_probe.analysis.default_scan import DefaultScan
    from moe_probe.analysis.kernels import kernels_for
    from moe_probe.analysis.quality.suite import Evidence
    from moe_probe.analysis.reading.rules import Rule
    from moe_probe.analysis.reading.source import Source
    from moe_probe.analysis.scan import chunks, scan_layers
    from moe_probe.analysis.settings import Settings

    source = Source(open_trace(path))
    kernels = kernels_for(source.num_selections)
    state = DefaultScan(source, Settings(), kernels)
    evidence = Evidence(source.trace, source, state.counts_by(Rule.RAW))

    def take(some: Sequence[int]) -> None:
        wanted = state.accumulators(evidence, state.document_tables(some))
        scan_layers(source, wanted, some, kernels)

    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(take, chunks(list(source.layers), THREADS, state.table_bytes)))
    return state


def analysis(path: str) -> Any:
    """The same with what documents are resampled for: intervals, permutations, shuffled orders."""
    from moe_probe.analysis.gathering import gather
    from moe_probe.analysis.settings import Settings

    return gather(path, Settings(threads=THREADS))


PASSES: dict[str, Callable[[str], Any]] = {
    "decode": decode,
    "bincount": bincount,
    "counts": counts,
    "core scan": core_scan,
    "default scan": default_scan,
    "analysis": analysis,
}


def timed(path: str, names: Sequence[str], rounds: int) -> dict[str, list[tuple[float, float]]]:
    """(wall, CPU) seconds of passes, warm and in turn; checks the counts first.

    Raises ValueError where the analysis counts otherwise than pyarrow and numpy.
    """
    if not np.array_equal(counts(path), bincount(path)):
        raise ValueError(f"the analysis and np.bincount count {path} otherwise")
    # Defaults bind each name now.
    calls = [lambda name=name: PASSES[name](path) for name in names]
    return dict(zip(names, in_turn(calls, rounds), strict=True))


def once(path: str, name: str) -> tuple[float, float]:
    """(wall, CPU) seconds of one pass that is not warm."""
    return seconds(lambda: PASSES[name](path))
