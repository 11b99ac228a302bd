"""Read a trace: its run, its tables, and its routing as zero-copy arrays, part by part.

Shape suffixes: T tokens, K slots.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from moe_probe.errors import TraceError
from moe_probe.trace.files import TraceFiles, read_run, read_tables
from moe_probe.trace.recovery import fixed_binary, recover, with_outcomes
from moe_probe.trace.schema import (
    ANSWER_SCHEMA,
    COUNTS_SCHEMA,
    SEQUENCE_SCHEMA,
    Capture,
    LayerSpec,
)
from moe_probe.trace.sharing import SharingIndex

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Block:
    """One part's tokens, or some of its layers; arrays are views on the decoded file."""

    table: pa.Table
    layers: dict[int, LayerSpec]

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @cached_property
    def sequence_id_T(self) -> np.ndarray:
        return self.table["sequence_id"].to_numpy()

    @cached_property
    def position_T(self) -> np.ndarray:
        return self.table["position"].to_numpy()

    @cached_property
    def token_id_T(self) -> np.ndarray:
        """Vocabulary ids; -1 where they were not stored."""
        return self.table["token_id"].to_numpy()

    def topk_ids(self, layer: int) -> np.ndarray:
        """Expert ids [T, K] of one layer, in the slot order run.json names."""
        spec = self.layers[layer]
        ids_TK = fixed_binary(self.table, spec.ids_column, spec.dtype)
        return ids_TK if len(ids_TK) else np.empty((0, spec.top_k), spec.dtype)

    def topk_weights(self, layer: int) -> np.ndarray:
        """Gate weights float16 [T, K] of one layer, slot by slot beside the ids."""
        spec = self.layers[layer]
        weights_TK = fixed_binary(self.table, spec.weights_column, np.float16)
        return weights_TK if len(weights_TK) else np.empty((0, spec.top_k), np.float16)


class Trace:
    """A trace on disk. Use `open_trace`."""

    def __init__(self, files: TraceFiles, run: dict[str, Any], *, is_recording: bool) -> None:
        self.files = files
        self.run = run
        self.is_recording = is_recording
        """Whether another process is still writing; only finished parts are read then."""
        try:
            self.layers = {
                spec.layer: spec for spec in map(LayerSpec.from_json, run["layers"])
            }
            self.capture = Capture(run["capture"])
        except (KeyError, TypeError, ValueError) as error:
            raise TraceError(f"{files.run} lacks what a trace needs: {error}.") from error

    def __repr__(self) -> str:
        model, status = self.run.get("model", "?"), self.run.get("status", "?")
        return f"Trace({str(self.files.root)!r}, model={model!r}, status={status!r})"

    @property
    def path(self) -> Path:
        return self.files.root

    @cached_property
    def sequences(self) -> pa.Table:
        """One row per sequence the model ran, answers joined."""
        sequences = read_tables(self.files.parts("sequences"), SEQUENCE_SCHEMA)
        return with_outcomes(sequences, read_tables(self.files.parts("answers"), ANSWER_SCHEMA), {})

    @cached_property
    def counts(self) -> pa.Table:
        """Selections by layer, expert, task, subject, area and segment.

        `count` is every token the model ran, `unique_count` every distinct context once. The
        parts are joined as they are: sum over whatever is not wanted.
        """
        return read_tables(self.files.parts("counts"), COUNTS_SCHEMA)

    @cached_property
    def sharing(self) -> SharingIndex:
        """Who stores the leading tokens of whom."""
        return SharingIndex(self.sequences)

    def scan(self, layers: list[int] | None = None, *, weights: bool = False) -> Iterator[Block]:
        """Yield the routing part by part, in recording order.

        Args:
            layers: Which layers to decode; all if None.
            weights: Whether to decode the gate weights too.

        Raises:
            TraceError: the trace has no per-token rows, or no weights, or a part is damaged.
        """
        if self.capture is Capture.COUNTS:
            raise TraceError(
                f"{self.path} was recorded with --capture counts and has no per-token rows. "
                "Record with --capture ids."
            )
        if weights and self.capture is not Capture.WEIGHTS:
            raise TraceError(f"{self.path} has no gate weights. Record with --capture weights.")
        chosen = {layer: self.layers[layer] for layer in (layers or self.layers)}
        columns = ["sequence_id", "position", "token_id"]
        columns += [spec.ids_column for spec in chosen.values()]
        if weights:
            columns += [spec.weights_column for spec in chosen.values()]
        known = self.sequences["sequence_id"].to_numpy()
        for path in self.files.parts("routing"):
            block = Block(_read_part(path, columns), chosen)
            is_known_T = np.isin(block.sequence_id_T, known)
            if not is_known_T.all():
                block = Block(block.table.filter(pa.array(is_known_T)), chosen)
            yield block

    def to_arrow(self) -> pa.Table:
        """All stored tokens with typed columns: ids as fixed-size lists, zero-copy where possible."""
        blocks = [_typed(block, self.capture) for block in
                  self.scan(weights=self.capture is Capture.WEIGHTS)]
        return pa.concat_tables(blocks)

    def to_pandas(self) -> pd.DataFrame:
        """All stored tokens as a DataFrame, one row per token."""
        return self.to_arrow().to_pandas()


def open_trace(path: str | Path) -> Trace:
    """Open a trace, first recovering what a killed recording left in staging.

    Raises:
        TraceError: `path` is not a trace, of another format, or damaged.
    """
    files = TraceFiles(Path(path))
    run = read_run(files)
    recovered = recover(files, run) if files.stage.is_dir() else 0
    return Trace(files, run, is_recording=recovered is None)


def _read_part(path: Path, columns: list[str]) -> pa.Table:
    try:
        return pq.ParquetFile(path).read(columns)
    except (pa.ArrowException, OSError, KeyError) as error:
        raise TraceError(f"{path} cannot be read as part of a trace: {error}") from error


def _typed(block: Block, capture: Capture) -> pa.Table:
    table = block.table
    for spec in block.layers.values():
        ids_TK = block.topk_ids(spec.layer)
        table = _replace(table, spec.ids_column, ids_TK)
        if capture is Capture.WEIGHTS:
            table = _replace(table, spec.weights_column, block.topk_weights(spec.layer))
    return table


def _replace(table: pa.Table, column: str, values_TK: np.ndarray) -> pa.Table:
    flat = pa.array(values_TK.ravel())
    lists = pa.FixedSizeListArray.from_arrays(flat, values_TK.shape[1])
    return table.set_column(table.schema.get_field_index(column), column, lists)
