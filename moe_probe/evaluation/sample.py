"""The bundled MMLU sample, prepared once per machine."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from moe_probe.errors import UsageError
from moe_probe.evaluation.mmlu import prepare, prepared_subjects

SAMPLE_TASK = "mmlu_sample"

_SOURCE = Path(__file__).parent.parent / "bundled" / "mmlu_sample"


def sample_directory() -> Path:
    """Return the offline copy of the bundled sample, written on first use.

    It lies in the user's cache under a name that depends on the questions. Raises UsageError where
    the cache cannot be written.
    """
    directory = _cache() / f"{SAMPLE_TASK}-{_content_hash()}"
    try:
        prepared_subjects(directory)
    except UsageError:
        _prepare_once(directory)
    return directory


def _prepare_once(directory: Path) -> None:
    try:
        prepare(_SOURCE, directory, force=True)
    except UsageError as error:
        # Another process may have finished the same copy first.
        try:
            prepared_subjects(directory)
        except UsageError:
            raise UsageError(f"{error} Set XDG_CACHE_HOME to a folder you can write.") from error


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "moe-probe"


def _content_hash() -> str:
    digest = hashlib.sha256()
    for path in sorted(_SOURCE.glob("*/*.csv")):
        digest.update(f"{path.relative_to(_SOURCE).as_posix()}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
