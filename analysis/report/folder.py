"""A folder of results: which of its files are ours, and which must not be overwritten."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from moe_probe.errors import MoeProbeError, UsageError

_RESULTS = {"report": "report", "compare": "comparison"}


@dataclass(frozen=True)
class Folder:
    """Where a command writes. Its manifest names what an earlier run of it wrote."""

    path: Path
    files: Sequence[str]
    """All that the command may write, relative to the folder."""
    manifest: str
    mark: str
    """A key that the manifests of this command have, and no others."""
    command: str

    def earlier(self) -> list[str]:
        """Return which of the files an earlier run wrote."""
        try:
            manifest = json.loads((self.path / self.manifest).read_text("utf-8"))
            written = manifest["files"] if self.mark in manifest else []
            return [name for name in self.files if name in written]
        except (OSError, ValueError, KeyError, TypeError):
            return []

    def refuse_foreign(self, names: Sequence[str], *, force: bool, most: int | None = None) -> None:
        """Raise UsageError where others' files would be overwritten, naming `most` of them."""
        if self.path.exists() and not self.path.is_dir():
            raise UsageError(f"{self.path} is not a directory. Choose another one with --output.")
        earlier = self.earlier()
        foreign = [n for n in names if (self.path / n).exists() and n not in earlier]
        if foreign and not force:
            raise UsageError(
                f"{self.path} has {', '.join(foreign[:most])}, which no moe-probe {self.command} "
                "wrote. Choose another directory with --output, or use --force to overwrite."
            )

    @contextmanager
    def replaced(self) -> Iterator[None]:
        """Delete what an earlier run wrote, and run the block, which writes anew.

        Raises MoeProbeError where the folder cannot be written.
        """
        try:
            for name in self.earlier():
                (self.path / name).unlink(missing_ok=True)
            yield
        except OSError as error:
            result = _RESULTS[self.command]
            raise MoeProbeError(
                f"Cannot write the {result} into {self.path}: {error.strerror or error}. "
                "Choose another directory with --output."
            ) from error
