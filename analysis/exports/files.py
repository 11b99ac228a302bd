"""Files of exports: each is there whole, or not at all, and replaces none that nobody gave up.

Shape suffixes: L layers, N experts.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from moe_probe.errors import MoeProbeError, UsageError


@dataclass(frozen=True)
class Rows:
    """A table that need not fit in memory."""

    schema: pa.Schema
    tables: Iterable[pa.Table]


def refuse_path(path: Path, trace: Path, *, force: bool) -> None:
    """Raise UsageError where a file must not be written: over another one, or into the trace."""
    if path.is_dir():
        raise UsageError(f"{path} is a directory. Name a file with --output.")
    if path.resolve().is_relative_to(trace.resolve()):
        raise UsageError(f"{path} lies in the trace, whose files are its own. Write elsewhere.")
    if not force and os.path.lexists(path):
        raise UsageError(f"{path} exists. Choose another --output, or use --force to overwrite.")


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield a temporary name that becomes `path` when the block ends without error.

    Raises:
        MoeProbeError: the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise MoeProbeError(
            f"Cannot write {path}: {error.strerror or error}. Choose another --output."
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_rows(rows: Rows, path: Path, suffix: str) -> int:
    """Write a table as .csv, where null is an empty field, or .parquet; return its rows.

    Text is plain text in both, and numbers are as in the schema.
    """
    # Opened here: Arrow takes no path that is not UTF-8.
    with path.open("wb") as file:
        return _write_csv(rows, file) if suffix == ".csv" else _write_parquet(rows, file)


def _write_csv(rows: Rows, file: IO[bytes]) -> int:
    written = 0
    plain = pa.schema([pa.field(f.name, _plain(f.type)) for f in rows.schema])
    options = pyarrow.csv.WriteOptions(quoting_style="needed")
    with pyarrow.csv.CSVWriter(file, plain, write_options=options) as csv:
        for table in rows.tables:
            csv.write_table(table.cast(plain))
            written += len(table)
    return written


def _write_parquet(rows: Rows, file: IO[bytes]) -> int:
    written = 0
    # Without our schema in the file, columns that are dictionaries in memory are plain text.
    with pq.ParquetWriter(file, rows.schema, compression="zstd", store_schema=False) as parquet:
        for table in rows.tables:
            parquet.write_table(table)
            written += len(table)
        # Not stored with the schema, which is not.
        parquet.add_key_value_metadata(rows.schema.metadata or {})
    return written


def write_matrix(matrix_LN: np.ndarray, layers: Iterable[int], path: Path, suffix: str) -> None:
    """Write one row per layer: .npy, or .csv with a column `layer` and one per expert."""
    with path.open("wb") as file:
        if suffix == ".npy":
            np.save(file, matrix_LN, allow_pickle=False)
            return
        names = ["layer", *map(str, range(matrix_LN.shape[1]))]
        columns = [np.array(list(layers), np.int64), *matrix_LN.T]
        options = pyarrow.csv.WriteOptions(quoting_style="none")
        pyarrow.csv.write_csv(pa.table(columns, names), file, options)


def write_json(name: str, array: np.ndarray, path: Path) -> None:
    """Write an array of integers as nested lists under a name."""
    path.write_text(json.dumps({name: array.tolist()}) + "\n", "utf-8")


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind
