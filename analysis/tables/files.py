"""Tables as files and as JSON. Their column names are a public interface."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from moe_probe.analysis.quality import Check
from moe_probe.analysis.tables.origin import COLUMNS, KEY, metadata


def quality_table(checks: Iterable[Check]) -> pd.DataFrame:
    """Tabulate the checks: check, name, status, value, expected, reason (why one was skipped)."""
    return pd.DataFrame([asdict(check) for check in checks])


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write a table as CSV, where null is an empty field, and as Parquet beside it.

    What `origin` says of it is in the metadata of the Parquet file. Rule and order are also the
    last columns of both files: a CSV has no other place that every reader takes.

    Args:
        table: Flat, without an index that matters.
        path: Of the CSV; the other file has the suffix .parquet.
    """
    arrow = _arrow(table)
    options = pyarrow.csv.WriteOptions(quoting_style="needed")
    # Opened here: Arrow takes no path that is not UTF-8.
    with path.open("wb") as csv, path.with_suffix(".parquet").open("wb") as parquet:
        pyarrow.csv.write_csv(arrow, csv, options)
        pq.write_table(arrow, parquet, compression="zstd")


def to_records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows for JSON, which has no NaN: null is None."""
    plain = table.astype(object).where(table.notna(), None)
    return [{str(name): value for name, value in row.items()} for row in plain.to_dict("records")]


def _arrow(table: pd.DataFrame) -> pa.Table:
    arrow = pa.Table.from_pandas(table, preserve_index=False)
    for number, field in enumerate(arrow.schema):
        # Dictionaries are for memory; a column of nulls alone has no type.
        if pa.types.is_dictionary(field.type) or pa.types.is_null(field.type):
            arrow = arrow.set_column(number, field.name, arrow[number].cast(pa.string()))
    facts = table.attrs.get(KEY)
    if facts is None:
        return arrow.replace_schema_metadata(None)
    for fact, name in COLUMNS.items():
        if facts[fact] is not None:
            arrow = arrow.append_column(name, pa.repeat(facts[fact], len(arrow)))
    return arrow.replace_schema_metadata(metadata(facts))
