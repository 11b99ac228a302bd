"""Counting selections by layer and expert with general tools, from a table of lists.

The table is what one would make for them: a row per (token, layer) with its experts as a list.

Shape suffixes: T tokens, K slots, L layers, N experts.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.support.clocks import median_cpu
from moe_probe.trace import open_trace

_ROW_GROUP = 122_880  # what DuckDB asks for


def write_lists(trace: str, path: str, tokens: int) -> int:
    """Write the first tokens of a trace as lists, and their counts beside it.

    Returns the number of selections.
    """
    opened = open_trace(trace)
    block = next(opened.scan())
    lists, counts = [], []
    for layer, spec in opened.layers.items():
        ids_TK = block.topk_ids(layer)[:tokens]
        offsets = pa.array(np.arange(len(ids_TK) + 1) * spec.top_k, pa.int32())
        experts = pa.ListArray.from_arrays(offsets, pa.array(ids_TK.ravel()))
        layers = pa.array(np.full(len(ids_TK), layer, np.uint8))
        lists.append(pa.table({"layer": layers, "experts": experts}))
        counts.append(np.bincount(ids_TK.ravel(), minlength=spec.num_experts))
    table = pa.concat_tables(lists)
    options = {"compression": "zstd", "compression_level": 1, "row_group_size": _ROW_GROUP}
    pq.write_table(table, path, **options)
    np.save(_counts_of(path), np.array(counts))
    return int(np.sum(counts))


def _counts_of(path: str) -> Path:
    return Path(path).with_suffix(".npy")


def with_duckdb(path: str) -> Any:
    import duckdb

    return duckdb.sql(
        f"SELECT layer, e, count(*) FROM (SELECT layer, unnest(experts) AS e FROM '{path}') "
        "GROUP BY ALL"
    ).fetchnumpy()


def with_polars(path: str) -> Any:
    import polars as pl

    selections = pl.scan_parquet(path).explode("experts")
    return selections.group_by("layer", "experts").len().collect().to_dict(as_series=False)


def with_pandas(path: str) -> Any:
    import pandas as pd

    selections = pd.read_parquet(path).explode("experts")
    return selections.groupby(["layer", "experts"]).size().reset_index().to_dict("list")


def with_pyarrow(path: str) -> Any:
    table = pq.read_table(path)
    lists = table["experts"].combine_chunks()
    lengths = np.diff(lists.offsets.to_numpy())
    key = np.repeat(table["layer"].to_numpy().astype(np.int64), lengths) << 8
    counts = np.bincount(key + lists.values.to_numpy())
    found = np.flatnonzero(counts)
    return {"layer": found >> 8, "expert": found & 255, "count": counts[found]}


ENGINES: dict[str, Callable[[str], Any]] = {
    "DuckDB": with_duckdb,
    "polars": with_polars,
    "pandas": with_pandas,
    "pyarrow + np.bincount": with_pyarrow,
}


def measure(engine: str, path: str, rounds: int) -> float:
    """Median CPU seconds of a count; raises ValueError where it differs from the right one."""
    count = ENGINES[engine]
    layers, experts, counts = map(np.asarray, count(path).values())
    right_LN = np.load(_counts_of(path))
    counted_LN = np.zeros_like(right_LN)
    counted_LN[layers.astype(int) - layers.min(), experts.astype(int)] = counts
    if not np.array_equal(counted_LN, right_LN):
        raise ValueError(f"{engine} counts {path} otherwise")
    return median_cpu(lambda: count(path), rounds)
