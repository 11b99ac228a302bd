"""docs/compare.md has every table and column, and its Python runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe_probe.analysis.comparison import TABLES, CompareSettings, Comparison, compare
from moe_probe.analysis.tables.layers import INDICES
from tests.analysis.comparison.prompts import make_prompts, write

TEXT = (Path(__file__).parents[3] / "docs" / "compare.md").read_text("utf-8")
# Explained once for all tables, or in metrics.md.
COMMON = {"trace", "layer", "expert", "subject", "path", "model", "engine", "dtype", "capture"}
COMMON |= {"status", "tokens", "first", "last", "num_experts", "top_k", "reference_tokens", "lost"}
COMMON |= {"margins_of", "margin_low", "margin_high", "layers", "slot", "max_vio", "cv", "gini"}
COMMON |= {"effective_experts", *INDICES}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    folder = tmp_path_factory.mktemp("docs")
    prompts = make_prompts(1)
    traces = [write(folder / name, prompts, noise=noise) for name, noise in (("a", 0), ("b", 0.3))]
    return compare(traces, CompareSettings(replicates=5))


@pytest.mark.parametrize("table", list(TABLES))
def test_every_column_is_documented(table: str, found: Comparison) -> None:
    assert re.search(rf"^### .*\b{table}\b", TEXT, re.M), table
    known = COMMON | {*re.findall(r"`([a-z_]+)`", TEXT)}
    for column in found.table(table).columns:
        base = re.sub(r"_(null|noise|reference|difference|low|high|tokens|q\d\d)$", "", column)
        assert known & {column, base}, f"{table}.{column}"


def test_the_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    (tmp_path / "demo").mkdir()
    write(tmp_path / "demo/trace", make_prompts(2), noise=0)
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```python\n(.*?)```", TEXT, re.S)
    names: dict[str, Any] = {}
    exec(compile(block, "docs/compare.md", "exec"), names)
    assert capsys.readouterr().out.splitlines()[-1] == "1.0"
    assert np.isfinite(names["found"].table("layers")["divergence_bits"]).all()
