"""Read a trace: its run, its tables, and its routing as zero-copy arrays, part by part.

Shape suffixes: T tokens, K slots.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from moe_probe.errors import TraceError
from moe_probe.trace.blocks import Block, typed
from moe_probe.trace.files import TraceFiles, read_run
from moe_probe.trace.locks import writer_lock
from moe_probe.trace.recovery import recover, unread_tokens
from moe_probe.trace.schema import (
    ANSWER_SCHEMA,
    COUNTS_SCHEMA,
    Capture,
    LayerSpec,
    RowLayout,
    identity_schema,
    routing_schema,
)
from moe_probe.trace.settling import by_sequence, with_outcomes
from moe_probe.trace.sharing import SharingIndex
from moe_probe.trace.tables import read_footer, read_part, read_sequences, read_tables

if TYPE_CHECKING:
    import pandas as pd


class Trace:
    """A trace on disk. Use `open_trace`."""

    def __init__(self, files: TraceFiles, run: dict[str, Any], *, is_recording: bool) -> None:
        self.files = files
        self.run = run
        self.is_recording = is_recording
        """Whether there is more than can be read: another process is still writing, or what it
        left cannot be recovered in a place that is read-only. Finished parts are read."""
        self.layers = {spec.layer: spec for spec in RowLayout.from_json(run["layers"]).layers}
        self.capture = Capture(run["capture"])
        # Of a recording that goes on, every table and scan shows the same parts.
        self._claimed = files.claimed()
        self._footers: dict[Path, pq.FileMetaData] = {}

    def __repr__(self) -> str:
        model, status = self.run.get("model", "?"), self.run.get("status", "?")
        return f"Trace({str(self.files.root)!r}, model={model!r}, status={status!r})"

    @property
    def path(self) -> Path:
        return self.files.root

    @cached_property
    def sequences(self) -> pa.Table:
        """One row per sequence the model ran, answers joined."""
        sequences = read_sequences(self.files.finished("sequences", self._claimed))
        answers = read_tables(self.files.finished("answers", self._claimed), ANSWER_SCHEMA)
        return with_outcomes(sequences, by_sequence(answers), {})

    @cached_property
    def counts(self) -> pa.Table:
        """Selections by layer, expert, task, subject, area and segment.

        `count` is every token the model ran, `unique_count` every distinct context once. The
        parts are joined as they are: sum over whatever is not wanted.
        """
        return read_tables(self.counts_parts, COUNTS_SCHEMA)

    @property
    def counts_parts(self) -> list[Path]:
        """The files of `counts`, to be read one by one where they are large."""
        return self.files.finished("counts", self._claimed)

    @cached_property
    def sharing(self) -> SharingIndex:
        """Who stores the leading tokens of whom."""
        return SharingIndex(self.sequences)

    def scan(self, layers: list[int] | None = None, *, weights: bool = False) -> Iterator[Block]:
        """Yield the routing part by part, in recording order.

        Args:
            layers: Which layers to decode; all if None.
            weights: Whether to decode the gate weights and router scalars too.

        Raises:
            TraceError: the trace has no per-token rows, or no weights, or a part is damaged.
        """
        chosen, capture = self._chosen(layers, weights=weights)
        schema = routing_schema(chosen.values(), capture)
        known = self.sequences["sequence_id"].to_numpy()
        for path in self.routing_parts:
            block = Block(read_part(path, schema), chosen)
            yield _claimed(block, known)

    @property
    def routing_parts(self) -> list[Path]:
        """The files of `scan`, to be read one by one and column by column."""
        return self.files.finished("routing", self._claimed)

    def read_identity(
        self, path: Path, *, token_ids: bool = False, forward_passes: bool = False
    ) -> Block:
        """Read which sequence and position each row of a routing part is.

        If asked, also which token it is, and which forward pass ran it.
        """
        schema = identity_schema(token_ids=token_ids, forward_passes=forward_passes)
        return Block(read_part(path, schema), {})

    def read_layers(self, path: Path, layers: list[int], *, weights: bool = False) -> Block:
        """Read some layers of a routing part, and nothing that says whose rows they are.

        Raises TraceError as `scan` does. Rows of sequences that the trace lacks are not left out.
        """
        chosen, capture = self._chosen(layers, weights=weights)
        identity = identity_schema(token_ids=True, forward_passes=True).names
        fields = [f for f in routing_schema(chosen.values(), capture) if f.name not in identity]
        if path not in self._footers:
            self._footers[path] = read_footer(path)
        return Block(read_part(path, pa.schema(fields), self._footers[path]), chosen)

    def _chosen(
        self, layers: list[int] | None, *, weights: bool
    ) -> tuple[dict[int, LayerSpec], Capture]:
        if self.capture is Capture.COUNTS:
            raise TraceError(
                f"{self.path} was recorded with --capture counts and has no per-token rows. "
                "Record with --capture ids."
            )
        if weights and self.capture is not Capture.WEIGHTS:
            raise TraceError(f"{self.path} has no gate weights. Record with --capture weights.")
        unknown = [layer for layer in layers or () if layer not in self.layers]
        if unknown:
            raise TraceError(f"{self.path} has no MoE layer {unknown[0]}: {list(self.layers)}.")
        chosen = self.layers if layers is None else {n: self.layers[n] for n in layers}
        return chosen, Capture.WEIGHTS if weights else Capture.IDS

    def to_arrow(self) -> pa.Table:
        """All stored tokens with typed columns: ids, weights, scalars as fixed-size lists.

        float16 becomes float32, because DuckDB refuses a table that has a float16 column.
        """
        weights = self.capture is Capture.WEIGHTS
        schema = routing_schema(self.layers.values(), self.capture)
        nothing = Block(schema.empty_table(), self.layers)
        blocks = [typed(block, weights=weights) for block in self.scan(weights=weights)]
        return pa.concat_tables([typed(nothing, weights=weights), *blocks])

    def to_pandas(self) -> pd.DataFrame:
        """All stored tokens as a DataFrame, one row per token."""
        frame: pd.DataFrame = self.to_arrow().to_pandas()
        return frame


def open_trace(path: Trace | str | Path) -> Trace:
    """Open a trace, first recovering what a killed recording left in staging.

    A recording that still goes on is left alone, and its finished parts are read. So is one that
    was killed and lies where nothing can be written; a warning says what is missing. A trace that
    is open already is returned as it is.

    Raises:
        TraceError: `path` is not a trace, of another format, or damaged.
    """
    if isinstance(path, Trace):
        return path
    files = TraceFiles(Path(path))
    run = read_run(files)
    if run.get("status") != "running" and not files.stage.is_dir():
        return Trace(files, run, is_recording=False)
    with ExitStack() as stack:
        try:
            is_ours = stack.enter_context(writer_lock(files))
        except OSError as error:
            return _read_only(files, run, error)
        if is_ours:
            run = read_run(files)  # the recording may have ended meanwhile
            recover(files, run)
        return Trace(files, run, is_recording=not is_ours)


def _read_only(files: TraceFiles, run: dict[str, Any], cause: OSError) -> Trace:
    try:
        tokens = unread_tokens(files, run)
        missing = f"{tokens} tokens of it are still in {files.stage} and are not read"
    except (TraceError, OSError) as error:
        tokens, missing = 1, f"what is still in {files.stage} cannot be read ({error})"
    is_unsettled = run.get("status") == "running"
    if tokens or is_unsettled:
        warnings.warn(
            f"{files.root} is an unfinished recording that cannot be recovered where it lies "
            f"({cause.strerror}): {missing}, and tokens shared between sequences are counted once. "
            "Copy the directory to a place that can be written and open it there.",
            stacklevel=3,
        )
    return Trace(files, run, is_recording=bool(tokens) or is_unsettled)


def _claimed(block: Block, known: np.ndarray) -> Block:
    """Leave out rows of sequences that the trace does not have; it is nearly always all of them."""
    ids_T = block.sequence_id_T
    is_first_T = np.ones(len(ids_T), bool)
    is_first_T[1:] = ids_T[1:] != ids_T[:-1]
    if np.isin(ids_T[is_first_T], known).all():
        return block
    return Block(block.table.filter(pa.array(np.isin(ids_T, known))), block.layers)
