"""Files of accumulators: numpy's own format, compressed, without pickle."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from moe_probe.errors import TraceError
from moe_probe.trace import LayerSpec

_HEADER = "header"
# What numpy and zipfile raise of files that are cut short or changed.
_DAMAGE = (
    *(OSError, EOFError, KeyError, ValueError, TypeError),
    *(RuntimeError, zipfile.BadZipFile, zlib.error),
)


def write(
    path: Path, kind: str, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> None:
    """Write a file that `reading` reads.

    Args:
        path: The file; replaced where there is one.
        kind: What accumulator it is of.
        header: What arrays do not say, as JSON has it.
        arrays: By name.
    """
    text = json.dumps({"kind": kind, **header}).encode()
    whole = {**arrays, _HEADER: np.frombuffer(text, np.uint8)}
    with path.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **whole)


def layers_of(header: Mapping[str, Any]) -> dict[int, LayerSpec]:
    """Return the layers that a header has under `layers`, as `LayerSpec.to_json` says them."""
    specs = [LayerSpec.from_json(value) for value in header["layers"]]
    return {spec.layer: spec for spec in specs}


@contextmanager
def reading(path: Path, kind: str) -> Iterator[tuple[dict[str, Any], dict[str, np.ndarray]]]:
    """Give the header and the arrays that `write` wrote.

    Raises:
        TraceError: the file is none of this kind, or is damaged; so are errors of what is made of
            it inside the block.
    """
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            header = json.loads(file[_HEADER].tobytes())
            if header["kind"] != kind:
                raise ValueError(f"it holds {header['kind']}")
            yield header, {name: file[name] for name in file.files if name != _HEADER}
    except _DAMAGE as error:
        reason = str(error) or "it is cut short"
        raise TraceError(f"{path} is not a file of {kind}: {reason}.") from error
