"""Every function and every column that it returns is documented, in both pages and in code."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import pytest

from moe_probe import analysis
from moe_probe.bundled import SAMPLE_TRACE
from tests.analysis.pass_streams import make_passes

DOCS = Path(__file__).parents[3] / "docs"
OF_PASSES = ("pass_balance",)
FUNCTIONS = [name for name, module in analysis._MODULES.items() if module.startswith("studies.")]


@cache
def table_of(name: str) -> pd.DataFrame:
    """What a function says of the bundled trace, which has token ids and right answers; of another
    where it needs forward passes."""
    with TemporaryDirectory() as folder:
        trace = SAMPLE_TRACE
        if name in OF_PASSES:
            trace = Path(folder) / "trace"
            make_passes(trace, 0)
        found: pd.DataFrame = getattr(analysis, name)(trace)
    return found


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_column_is_documented(name: str) -> None:
    section = re.search(
        rf"^### [a-z_, ]*\b{name}\b.*?(?=^##|\Z)",
        (DOCS / "metrics.md").read_text("utf-8"),
        re.M | re.S,
    )
    assert section, name
    known = set(re.findall(r"`([a-z0-9_]+)`", section[0])) | {"layer", "expert", "subject"}
    assert set(table_of(name).columns) <= known
    assert re.search(rf"^\| [^|]*`{name}`", (DOCS / "analysis.md").read_text("utf-8"), re.M)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_column_is_described_where_it_is_made(name: str) -> None:
    returns = (getattr(analysis, name).__doc__ or "").split("Returns:")[1]
    assert len(table_of(name))
    for column in table_of(name).columns:
        assert re.search(rf"\b{column}\b", returns), column
