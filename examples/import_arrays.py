"""Write arrays of routing decisions, as other projects publish them, as a trace.

    python examples/import_arrays.py --num-experts 64 --first-layer 1 law.npz intent.npz -o TRACE

Each .npz file is a subject and has the arrays ``experts`` [tokens, layers, k], ``weights`` of the
same shape if they are known, and ``document_lengths`` [documents]. docs/import.md says more.

Shape suffixes: T tokens of a document, D documents, L layers, K slots.
"""

from __future__ import annotations

import argparse
import sys
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moe_probe import TraceWriter
from moe_probe.errors import MoeProbeError, UsageError
from moe_probe.trace import LayerSpec
from moe_probe.trace.schema import segment_tokens

# numpy gives these no types.
_npy: Any = np.lib.format
_HEADERS = {(1, 0): _npy.read_array_header_1_0, (2, 0): _npy.read_array_header_2_0}


class Array:
    """One array of an .npz file, read row after row: never as a whole, and never with pickle."""

    def __init__(self, archive: zipfile.ZipFile, name: str, kinds: str) -> None:
        self._where = f"{name} in {archive.filename}"
        if not has_array(archive, name):
            raise UsageError(f"{archive.filename} has no array {name}.")
        self._file = archive.open(f"{name}.npy")
        try:
            header = _HEADERS[_npy.read_magic(self._file)](self._file)
        except (KeyError, ValueError) as error:
            raise UsageError(f"{self._where} is not a plain array: {error}.") from error
        self.shape, is_fortran, self.dtype = header
        if is_fortran or self.dtype.kind not in kinds:
            order = "Fortran" if is_fortran else "C"
            wanted = "integers" if kinds == "iu" else "floating-point numbers"
            raise UsageError(
                f"{self._where} is {self.dtype} in {order} order; {wanted} in C order are needed."
            )

    def read(self, rows: int) -> np.ndarray:
        """Return the next rows."""
        shape = rows, *self.shape[1:]
        size = int(np.prod(shape)) * self.dtype.itemsize
        data = self._file.read(size)
        if len(data) < size:
            raise UsageError(f"{self._where} ends before its last row.")
        return np.frombuffer(data, self.dtype).reshape(shape)


@dataclass(frozen=True)
class Source:
    """One file, of which everything but the rows was read."""

    path: Path
    num_layers: int
    top_k: int
    has_weights: bool
    length_D: np.ndarray

    @property
    def subject(self) -> str:
        return self.path.stem

    @classmethod
    def of(cls, path: Path) -> Source:
        """Read a file's shapes and lengths; raises UsageError where they do not fit."""
        with opened(path) as archive:
            experts, lengths = (
                Array(archive, "experts", "iu"),
                Array(archive, "document_lengths", "iu"),
            )
            if len(experts.shape) != 3 or len(lengths.shape) != 1:
                raise UsageError(
                    f"{path} has experts of shape {experts.shape} and document_lengths of shape "
                    f"{lengths.shape}; [tokens, layers, k] and [documents] are needed."
                )
            has_weights = has_array(archive, "weights")
            if has_weights and (shape := Array(archive, "weights", "f").shape) != experts.shape:
                raise UsageError(f"{path} has weights {shape} for experts {experts.shape}.")
            length_D = lengths.read(lengths.shape[0]).astype(np.int64)
        tokens, num_layers, top_k = experts.shape
        # Not in int64, in which lengths that no document has may add up to any number.
        total = sum(length_D.tolist())
        if length_D.min(initial=0) < 0 or total != tokens:
            raise UsageError(
                f"{path} has {tokens:,} tokens, but its document_lengths sum to {total:,}, the "
                f"least being {length_D.min(initial=0):,}."
            )
        return cls(path, num_layers, top_k, has_weights, length_D)

    def documents(self, *, weights: bool) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        """Yield each document's ids and float16 weights [T, L, K], one document in memory."""
        with opened(self.path) as archive:
            experts = Array(archive, "experts", "iu")
            gates = Array(archive, "weights", "f") if weights else None
            for length in self.length_D.tolist():
                # What float16 does not hold becomes infinite, and a check tells of it.
                with np.errstate(over="ignore"):
                    gates_TLK = gates.read(length).astype(np.float16) if gates else None
                yield by_weight(experts.read(length), gates_TLK)


@contextmanager
def opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open an .npz file; raises UsageError where it cannot be read."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"{path} cannot be read as an .npz file: {reason}.") from error


def has_array(archive: zipfile.ZipFile, name: str) -> bool:
    return f"{name}.npy" in archive.namelist()


def by_weight(
    ids_TLK: np.ndarray, weights_TLK: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Put slots in descending order of weight; without weights they stay as they are."""
    if weights_TLK is None:
        return ids_TLK, None
    order_TLK = np.argsort(-weights_TLK, axis=2, kind="stable")
    return (
        np.take_along_axis(ids_TLK, order_TLK, axis=2),
        np.take_along_axis(weights_TLK, order_TLK, axis=2),
    )


def import_arrays(
    sources: list[Source],
    output: Path,
    *,
    num_experts: int,
    first_layer: int,
    task: str,
    force: bool,
) -> Path:
    """Write one trace of all sources and return its path; a failed one has that status."""
    num_layers, top_k = one_shape(sources)
    has_weights = all(source.has_weights for source in sources)
    layers = [
        LayerSpec(layer=first_layer + index, num_experts=num_experts, top_k=top_k)
        for index in range(num_layers)
    ]
    run = {"slot_order": "descending_weight" if has_weights else "unknown"}
    longest = max(int(source.length_D.max(initial=0)) for source in sources)
    with TraceWriter(
        output,
        layers=layers,
        capture="weights" if has_weights else "ids",
        run=run,
        force=force,
        segment_tokens=segment_tokens(longest),
    ) as writer:
        for source in sources:
            for number, rows in enumerate(source.documents(weights=has_weights)):
                ids, weights = map(layer_list, rows)
                try:
                    writer.add(
                        ids or [],
                        topk_weights=weights,
                        task=task,
                        subject=source.subject,
                        doc_id=number,
                        kind="imported",
                    )
                except ValueError as error:
                    raise UsageError(f"{source.path}, document {number}: {error}.") from error
    return output


def layer_list(rows_TLK: np.ndarray | None) -> list[np.ndarray] | None:
    return None if rows_TLK is None else list(rows_TLK.swapaxes(0, 1))


def one_shape(sources: Iterable[Source]) -> tuple[int, int]:
    """Return layers and slots of all sources; raises UsageError where they differ."""
    first, *others = sources
    subjects = {first.subject}
    for other in others:
        if (other.num_layers, other.top_k) != (first.num_layers, first.top_k):
            raise UsageError(
                f"{first.path} has {first.num_layers} layers and {first.top_k} slots, but "
                f"{other.path} has {other.num_layers} and {other.top_k}."
            )
        if other.subject in subjects:
            raise UsageError(f"Two files are named {other.subject}, and each is a subject.")
        subjects.add(other.subject)
    return first.num_layers, first.top_k


def main() -> int:
    parser = argparse.ArgumentParser(description="Write arrays of routing decisions as a trace.")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.npz", help="one per subject")
    parser.add_argument("-o", "--output", required=True, type=Path, help="the trace to write")
    parser.add_argument("--num-experts", required=True, type=int, help="routed experts of a layer")
    parser.add_argument("--first-layer", default=0, type=int, help="the first MoE layer's index")
    parser.add_argument("--task", default="imported", help="name of the task in the trace")
    parser.add_argument("--force", action="store_true", help="replace an existing trace")
    options = vars(parser.parse_args())
    try:
        sources = [Source.of(path) for path in options.pop("files")]
        print(import_arrays(sources, **options))
    except MoeProbeError as error:
        print(f"Error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
