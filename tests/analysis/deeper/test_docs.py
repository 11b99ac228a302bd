"""Every function and every column that it returns is documented, in both pages and in code."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from moe_probe import analysis
from moe_probe.trace import Trace
from tests.analysis.streams import make_stream

DOCS = Path(__file__).parents[3] / "docs"
FUNCTIONS = [name for name, module in analysis._MODULES.items() if module.startswith("deeper.")]


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    return make_stream(tmp_path_factory.mktemp("documented") / "trace", 0)[0]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_column_is_documented(name: str, trace: Trace) -> None:
    function: Callable[..., pd.DataFrame] = getattr(analysis, name)
    section = re.search(
        rf"^### [a-z_, ]*\b{name}\b.*?(?=^##|\Z)",
        (DOCS / "metrics.md").read_text("utf-8"),
        re.M | re.S,
    )
    assert section, name
    known = set(re.findall(r"`([a-z0-9_]+)`", section[0])) | {"layer", "expert", "subject"}
    assert set(function(trace).columns) <= known
    assert f"| `{name}` |" in (DOCS / "analysis.md").read_text("utf-8")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_column_is_described_where_it_is_made(name: str, trace: Trace) -> None:
    function: Callable[..., pd.DataFrame] = getattr(analysis, name)
    returns = (function.__doc__ or "").split("Returns:")[1]
    for column in function(trace).columns:
        assert re.search(rf"\b{column}\b", returns), column
