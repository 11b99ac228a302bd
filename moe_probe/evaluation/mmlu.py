"""An offline copy of MMLU that lm-eval's own tasks can read.

The copy has the layout of the Hub dataset `cais/mmlu`: one folder per subject, one parquet file per
split, and a README.md whose front matter names them, which is how `datasets` finds a subject.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from uuid import uuid4

from moe_probe.errors import UsageError
from moe_probe.evaluation.mmlu_source import SUBJECT, Question, Questions, read_questions

_MARKER = "moe-probe-mmlu.json"
_FORMAT = {"format": "moe-probe-mmlu", "version": 1}


def prepare(src: Path, out: Path, *, force: bool = False) -> dict[str, dict[str, int]]:
    """Write the offline copy and return its number of questions by subject and split.

    `out` appears complete or not at all. Raises UsageError where `src` cannot be read, or where
    `out` exists: `force` replaces an earlier copy and nothing else.
    """
    _refuse_existing(out, force=force)
    questions = read_questions(src)
    staging = out.parent / f".{out.name}.{uuid4().hex}"
    try:
        staging.mkdir(parents=True)
        for subject, splits in questions.items():
            for split, rows in splits.items():
                _write_split(staging / subject / _split_file(split), subject, rows)
        (staging / "README.md").write_text(_readme(questions), encoding="utf-8")
        sizes = {s: {name: len(rows) for name, rows in q.items()} for s, q in questions.items()}
        marker = json.dumps({**_FORMAT, "subjects": sizes}, indent=1)
        (staging / _MARKER).write_text(marker, encoding="utf-8")
        if out.exists():
            shutil.rmtree(out)
        os.replace(staging, out)
    except OSError as error:
        raise UsageError(f"{out} cannot be written ({error}). Choose another place.") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return sizes


def prepared_subjects(directory: Path) -> dict[str, dict[str, int]]:
    """Return the number of questions by subject and split in an offline copy.

    Raises UsageError where the directory is not one.
    """
    try:
        marker = json.loads((directory / _MARKER).read_text(encoding="utf-8"))
        if {key: marker[key] for key in _FORMAT} != _FORMAT:
            raise ValueError(f"format {marker['format']!r} version {marker['version']!r}")
        subjects: dict[str, dict[str, int]] = dict(marker["subjects"])
        if strange := [name for name in subjects if not SUBJECT.fullmatch(name)]:
            raise ValueError(f"subject {strange[0]!r}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{directory} is not an offline copy of MMLU ({error}). "
            f"Make one: moe-probe mmlu prepare --src CSV_OR_PARQUET_DIR --out {directory}"
        ) from error
    return subjects


def _split_file(split: str) -> str:
    return f"{split}-00000-of-00001.parquet"


def _write_split(path: Path, subject: str, rows: list[Question]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {
        "question": pa.array([row.question for row in rows], pa.string()),
        "subject": pa.array([subject] * len(rows), pa.string()),
        "choices": pa.array([list(row.choices) for row in rows], pa.list_(pa.string())),
        "answer": pa.array([row.answer for row in rows], pa.int64()),
    }
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table(columns), path)


def _readme(questions: Questions) -> str:
    lines = ["---", "configs:"]
    for subject, splits in questions.items():
        lines += [f"- config_name: {subject}", "  data_files:"]
        for split in splits:
            lines += [f"  - split: {split}", f"    path: {subject}/{_split_file(split)}"]
    lines += [
        "---",
        "",
        "MMLU questions in the layout of cais/mmlu, for use without a network:",
        "",
    ]
    lines += ["    moe-probe record --task mmlu --mmlu-dir THIS_DIRECTORY ...", ""]
    return "\n".join(lines)


def _refuse_existing(out: Path, *, force: bool) -> None:
    if not out.exists():
        return
    if not force:
        raise UsageError(f"{out} exists. Choose another --out, or replace it with --force.")
    if out.is_dir() and not any(out.iterdir()):
        return
    try:
        prepared_subjects(out)
    except UsageError as error:
        raise UsageError(
            f"{out} exists and is not an offline copy of MMLU, so --force does not replace it. "
            "Choose another --out."
        ) from error
