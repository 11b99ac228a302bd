"""Read MMLU questions from the layouts people have: hendrycks CSV folders, and parquet."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_probe.errors import UsageError

CHOICES = "ABCD"

# Folder and file names of one split, in the spellings of the CSV and of the Hub copy.
SPLITS = {"dev": "dev", "test": "test", "val": "validation", "validation": "validation"}

# A subject becomes a folder name and part of a task name.
SUBJECT = re.compile(r"\w[\w-]*")


@dataclass(frozen=True)
class Question:
    """One multiple-choice question."""

    question: str
    """The question text."""
    choices: tuple[str, ...]
    """The four answer texts."""
    answer: int
    """Index of the right choice."""


Questions = dict[str, dict[str, list[Question]]]
"""Questions by subject, then by split."""


def read_questions(src: Path) -> Questions:
    """Read every question under a directory, in the order of its files.

    Raises UsageError naming the file and row of the first question that cannot be read, or saying
    what was expected where nothing was found.
    """
    if not src.is_dir():
        raise UsageError(f"{src} is not a directory. Pass the folder that holds dev/ and test/.")
    questions = _read_csv_folders(src) or _read_parquet(src)
    if not questions:
        raise UsageError(
            f"{src} holds no MMLU questions. Expected dev/<subject>_dev.csv and "
            "test/<subject>_test.csv, or parquet files with question, subject, choices, answer."
        )
    for subject, splits in questions.items():
        for split in ("dev", "test"):
            if not splits.get(split):
                raise UsageError(f"{src} has no {split} questions for {subject!r}. Add them.")
    return questions


def _read_csv_folders(src: Path) -> Questions:
    questions: Questions = {}
    for folder, split in SPLITS.items():
        for path in sorted((src / folder).glob(f"*_{folder}.csv")):
            subject = _subject(path.stem.removesuffix(f"_{folder}"), path)
            questions.setdefault(subject, {})[split] = list(_read_csv(path))
    return questions


def _read_csv(path: Path) -> Iterator[Question]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            rows = list(csv.reader(stream, strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(
            f"{path} cannot be read as CSV ({error}). Save it as UTF-8 CSV."
        ) from error
    header = _header_columns(rows[0], path) if rows else None
    for number, row in enumerate(rows, start=1):
        if row and not (header and number == 1):
            yield _question_from_csv(row, header or range(6), where=f"{path}, row {number}")


def _header_columns(row: list[str], path: Path) -> list[int] | None:
    """Find the six columns by name; None where the first row is already a question."""
    header = [cell.strip().lower() for cell in row]
    if "question" not in header or "answer" not in header:
        return None
    wanted = ["question", *CHOICES.lower(), "answer"]
    if missing := [name for name in wanted if name not in header]:
        raise UsageError(f"{path} has a header without {missing}. Expected {','.join(wanted)}.")
    return [header.index(name) for name in wanted]


def _question_from_csv(row: list[str], columns: Sequence[int], *, where: str) -> Question:
    if len(row) <= max(columns):
        raise UsageError(f"{where} has {len(row)} columns. Expected question,A,B,C,D,answer.")
    question, *choices, answer = (row[column] for column in columns)
    return _question(question, choices, answer, where=where)


def _read_parquet(src: Path) -> Questions:
    files = sorted(src.glob("**/*.parquet"))
    # The Hub copy holds every question twice: per subject, and together in "all".
    files = [path for path in files if path.parent.name == "all"] or files
    questions: Questions = {}
    for path in files:
        if split := SPLITS.get(path.stem.split("-")[0]):
            for number, row in enumerate(_parquet_rows(path), start=1):
                where = f"{path}, row {number}"
                subject = _subject(row["subject"], where)
                question = _question(row["question"], row["choices"], row["answer"], where=where)
                questions.setdefault(subject, {}).setdefault(split, []).append(question)
    return questions


def _parquet_rows(path: Path) -> list[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    wanted = ["question", "subject", "choices", "answer"]
    try:
        missing = [name for name in wanted if name not in pq.read_schema(path).names]
        if missing:
            raise UsageError(f"{path} lacks the columns {missing}. Expected {', '.join(wanted)}.")
        # A single file, not the dataset reader, which reads meaning into the folder names.
        rows: list[dict[str, Any]] = pq.ParquetFile(path).read(columns=wanted).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise UsageError(f"{path} cannot be read as parquet ({error}). Replace it.") from error
    return rows


def _question(question: Any, choices: Sequence[Any], answer: Any, *, where: str) -> Question:
    if not isinstance(question, str) or not question.strip():
        raise UsageError(f"{where} has no question text. Correct or remove the row.")
    if not isinstance(choices, list) or len(choices) != len(CHOICES):
        raise UsageError(f"{where} has the choices {choices!r}. Four are needed.")
    return Question(question, tuple(str(text) for text in choices), _answer(answer, where))


def _answer(answer: Any, where: str) -> int:
    text = str(answer).strip().upper()
    if len(text) == 1 and text in CHOICES:
        return CHOICES.index(text)
    if len(text) == 1 and text in "0123":
        return int(text)
    raise UsageError(f"{where} has the answer {answer!r}. Expected a letter A-D or an index 0-3.")


def _subject(subject: Any, where: object) -> str:
    if not isinstance(subject, str) or not SUBJECT.fullmatch(subject):
        raise UsageError(
            f"{where} has the subject {subject!r}. Use letters, digits, '_' and '-' only."
        )
    return subject
