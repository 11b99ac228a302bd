from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moe_probe.errors import UsageError
from moe_probe.evaluation.mmlu import prepare, prepared_subjects

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "mmlu"

ROWS = [
    ["2 + 2?", "3", "4", "5", "6", "B"],
    ['A "quoted", line\nbreak?', "yes", "no", "None", "N/A", "D"],
]


def write_csv(path: Path, rows: list[list[str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows(rows)


def headered(rows: list[list[str]], *, as_index: bool) -> list[list[str]]:
    answers = [str("ABCD".index(row[5])) if as_index else row[5] for row in rows]
    body = [[a, *row[:5]] for a, row in zip(answers, rows, strict=True)]
    return [["answer", "question", "A", "B", "C", "D"], *body]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for split in ("dev", "test"):
        write_csv(tmp_path / "src" / split / f"algebra_{split}.csv", ROWS)
    return tmp_path / "src"


def read(directory: Path, subject: str, split: str) -> list[dict[str, Any]]:
    file = pq.ParquetFile(directory / subject / f"{split}-00000-of-00001.parquet")
    rows: list[dict[str, Any]] = file.read().to_pylist()
    return rows


EXPECTED = [
    {"question": "2 + 2?", "subject": "algebra", "choices": ["3", "4", "5", "6"], "answer": 1},
    {
        "question": 'A "quoted", line\nbreak?',
        "subject": "algebra",
        "choices": ["yes", "no", "None", "N/A"],
        "answer": 3,
    },
]


def test_headerless_csv(source: Path, tmp_path: Path) -> None:
    sizes = prepare(source, tmp_path / "out")
    assert sizes == {"algebra": {"dev": 2, "test": 2}} == prepared_subjects(tmp_path / "out")
    assert read(tmp_path / "out", "algebra", "test") == EXPECTED


@pytest.mark.parametrize("as_index", [True, False])
def test_headered_csv(source: Path, tmp_path: Path, as_index: bool) -> None:
    write_csv(source / "test" / "algebra_test.csv", headered(ROWS, as_index=as_index))
    prepare(source, tmp_path / "out")
    assert read(tmp_path / "out", "algebra", "test") == EXPECTED


def test_validation_split_and_any_number_of_subjects(source: Path, tmp_path: Path) -> None:
    write_csv(source / "val" / "algebra_val.csv", ROWS[:1])
    for split in ("dev", "test"):
        write_csv(source / split / f"home_brewing_{split}.csv", ROWS)
    sizes = prepare(source, tmp_path / "out")
    assert sizes["algebra"] == {"dev": 2, "test": 2, "validation": 1}
    assert sizes["home_brewing"] == {"dev": 2, "test": 2}
    assert "- config_name: home_brewing\n" in (tmp_path / "out" / "README.md").read_text()


def test_parquet_copy_of_a_copy_is_the_same(source: Path, tmp_path: Path) -> None:
    prepare(source, tmp_path / "first")
    prepare(tmp_path / "first", tmp_path / "second")
    assert read(tmp_path / "second", "algebra", "dev") == EXPECTED


def test_hub_layout_counts_no_question_twice(source: Path, tmp_path: Path) -> None:
    prepare(source, tmp_path / "hub")
    table = pa.Table.from_pylist(EXPECTED)
    (tmp_path / "hub" / "all").mkdir()
    for split in ("dev", "test", "auxiliary_train"):
        pq.write_table(table, tmp_path / "hub" / "all" / f"{split}-00000-of-00001.parquet")
    assert prepare(tmp_path / "hub", tmp_path / "out") == {"algebra": {"dev": 2, "test": 2}}


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        (["Why?", "1", "2", "3", "4", "E"], "has the answer 'E'"),
        (["Why?", "1", "2", "3", "4", "4"], "has the answer '4'"),
        (["Why?", "1", "2", "3", "A"], "has 5 columns"),
        ([" ", "1", "2", "3", "4", "A"], "has no question text"),
    ],
)
def test_bad_row_is_named(source: Path, tmp_path: Path, row: list[str], complaint: str) -> None:
    path = source / "test" / "algebra_test.csv"
    write_csv(path, [*ROWS, row])
    with pytest.raises(UsageError) as caught:
        prepare(source, tmp_path / "out")
    assert str(caught.value).startswith(f"{path}, row 3 {complaint}")
    assert not (tmp_path / "out").exists()


def test_bad_parquet_is_named(source: Path, tmp_path: Path) -> None:
    prepare(source, tmp_path / "hub")
    path = tmp_path / "hub" / "algebra" / "test-00000-of-00001.parquet"
    pq.write_table(pa.Table.from_pylist([{**EXPECTED[0], "subject": "../up"}]), path)
    with pytest.raises(UsageError, match=r"row 1 has the subject '\.\./up'"):
        prepare(tmp_path / "hub", tmp_path / "out")
    pq.write_table(pa.table({"question": ["Why?"]}), path)
    with pytest.raises(UsageError, match=r"lacks the columns .*subject"):
        prepare(tmp_path / "hub", tmp_path / "out")
    path.write_bytes(b"not parquet")
    with pytest.raises(UsageError, match="cannot be read as parquet"):
        prepare(tmp_path / "hub", tmp_path / "out")


def test_sources_that_are_none(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a directory"):
        prepare(tmp_path / "absent", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="holds no MMLU questions"):
        prepare(tmp_path / "empty", tmp_path / "out")
    (source / "dev" / "algebra_dev.csv").unlink()
    with pytest.raises(UsageError, match="has no dev questions for 'algebra'"):
        prepare(source, tmp_path / "out")
    (source / "test" / "algebra_test.csv").write_bytes(b"\xff\xfe\x00,")
    with pytest.raises(UsageError, match="cannot be read as CSV"):
        prepare(source, tmp_path / "out")


def test_force_replaces_a_copy_and_nothing_else(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare(source, out)
    with pytest.raises(UsageError, match="out exists"):
        prepare(source, out)
    write_csv(source / "test" / "algebra_test.csv", ROWS[:1])
    assert prepare(source, out, force=True) == {"algebra": {"dev": 2, "test": 1}}
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="is not an offline copy of MMLU, so --force does not"):
        prepare(source, precious, force=True)
    assert [path.name for path in precious.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("old", "new"),
    [('"version": 1', '"version": 2'), ('"algebra"', '"../algebra"'), ("{", "[")],
)
def test_strange_marker_is_refused(source: Path, tmp_path: Path, old: str, new: str) -> None:
    prepare(source, tmp_path / "out")
    marker = tmp_path / "out" / "moe-probe-mmlu.json"
    marker.write_text(marker.read_text().replace(old, new, 1))
    with pytest.raises(UsageError, match="is not an offline copy of MMLU"):
        prepared_subjects(tmp_path / "out")


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no copy of MMLU at {REAL}")
def test_real_mmlu_round_trip(tmp_path: Path) -> None:
    sizes = prepare(REAL, tmp_path / "out")
    assert len(sizes) == 57
    assert sum(splits["test"] for splits in sizes.values()) == 14_042
    assert sum(splits["dev"] for splits in sizes.values()) == 285
    for subject in sizes:
        for split in ("dev", "test"):
            with (REAL / split / f"{subject}_{split}.csv").open(newline="") as stream:
                original = list(csv.reader(stream))
            written = [
                [row["question"], *row["choices"], "ABCD"[row["answer"]]]
                for row in read(tmp_path / "out", subject, split)
            ]
            assert written == original
