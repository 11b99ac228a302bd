"""The Python of docs/analysis.md runs, block after block, as one program; names in docs exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from moe_probe.analysis import Settings, analyse, count
from moe_probe.analysis.results import TABLES
from moe_probe.trace import open_trace
from tests.analysis.streams import make_stream

DOCS = Path(__file__).parents[2] / "docs"
_NAME = re.compile(r"`([a-z0-9_*]+)`")


def python_blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", (DOCS / "analysis.md").read_text("utf-8"), re.S)


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Everything the page's program defines, run where its traces lie."""
    folder = tmp_path_factory.mktemp("docs")
    for seed, name in enumerate(("demo/trace", "monday", "tuesday")):
        make_stream(folder / name, seed)
    found: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for number, block in enumerate(python_blocks()):
            exec(compile(block, f"docs/analysis.md, block {number}", "exec"), found)
        found["stored"] = open_trace("demo/trace").counts.to_pandas()
        found["shards"] = [count(open_trace(name)) for name in ("monday", "tuesday")]
        found["files"] = {str(path) for path in Path("my-report").rglob("*")}
    return found


def test_blocks_compute_what_they_say(names: dict[str, Any]) -> None:
    counts_N = names["counts_SN"].sum(axis=0)
    assert names["fairness"] == counts_N.sum() ** 2 / (len(counts_N) * (counts_N**2).sum())
    assert names["noise"] > 0
    assert (names["floor"], names["change"]) == (1 - 6 / 64, pytest.approx(0.02))
    assert sum(names["tokens_of"].values()) == names["found"].layers["tokens"][0]
    stored = names["stored"]
    in_question = stored[(stored["layer"] == 1) & (stored["segment"] == "question")]
    by_expert = in_question.groupby("expert")["unique_count"].sum()
    expected_N = by_expert.reindex(range(len(counts_N)), fill_value=0).to_numpy()
    assert names["question"].counts_N.tolist() == expected_N.tolist()
    assert names["load_N"] == pytest.approx(expected_N * len(expected_N) / expected_N.sum())
    counts_CN = names["documents"].arrays[1]["counts_CN"]
    assert names["used_N"].tolist() == [float((c > 0).mean()) for c in counts_CN.T]
    assert names["runs"].tokens == names["runs"].longest_N.max(), "an expert is never selected"


def test_shards_add_up(names: dict[str, Any]) -> None:
    total_N = names["total"].layer(1).counts_N
    assert total_N.tolist() == sum(count.layer(1).counts_N for count in names["shards"]).tolist()


def test_page_lists_every_file(names: dict[str, Any]) -> None:
    assert {"my-report/report.html", "my-report/report.json"} <= names["files"]
    assert "my-report/figures/relative_load.png" in names["files"]
    for table in TABLES:
        for kind in ("csv", "parquet"):
            assert f"my-report/tables/{table}.{kind}" in names["files"]


def test_page_lists_every_setting() -> None:
    text = (DOCS / "analysis.md").read_text("utf-8")
    for name in Settings.__dataclass_fields__:
        assert f"\n| `{name}` |" in text, name


@pytest.mark.parametrize("table", list(TABLES))
def test_every_column_is_documented(table: str, tables: dict[str, pd.DataFrame]) -> None:
    text = (DOCS / "metrics.md").read_text("utf-8")
    assert re.search(rf"^(### .*\b{table}\b|\| `{table}`)", text, re.M), table
    known = set(_NAME.findall(text)) | {"layer", "expert", "other", "subject", "next_layer"}
    known |= {"rule", "window", "lag", "q25", "median", "q75", "q95", "quantity", "segment"}
    for column in tables[table].columns:
        base = column.removesuffix("_null").removesuffix("_noise").removeprefix("other_token_")
        assert known & {column, base}, f"{table}.{column}"


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pd.DataFrame]:
    trace, _ = make_stream(tmp_path_factory.mktemp("columns") / "trace", 0)
    found = analyse(trace, shuffles=2, replicates=5, permutations=5)
    return {name: found.table(name) for name in TABLES}
