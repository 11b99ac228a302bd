"""What Python writes into a page is what its scripts read, and it stays small."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from moe_probe.analysis.report.page.assets import SCRIPTS, file
from moe_probe.analysis.report.page.data_core import TABLES, UNSHOWN
from moe_probe.analysis.report.page.payload import round_float32
from moe_probe.analysis.report.page.text import ALPHABET, to_text
from moe_probe.analysis.statistics.intervals import share_interval
from tests.analysis.report.page.browser import Opened

Open = Callable[..., Opened]
_JS = Path(__file__).parents[4] / "analysis/report/page/js"


def test_tables_arrive_whole(open_page: Open, plain: Path) -> None:
    page = open_page(plain)
    for name in TABLES:
        wanted = pd.read_csv(plain / f"tables/{name}.csv", keep_default_na=name != "quality")
        # The page's caption says them.
        wanted = wanted.drop(columns=["counting_rule", "token_order", *UNSHOWN.get(name, ())])
        found = page.page.evaluate(
            "name => { const table = MoeProbe.page.data.table(name); return Object.fromEntries("
            "table.names.map(c => [c, Array.from(table.column(c))])); }",
            name,
        )
        assert list(found) == list(wanted.columns)
        for column in wanted.columns:
            _assert_same(pd.Series(found[column]), wanted[column])


def _assert_same(found: pd.Series[Any], wanted: pd.Series[Any]) -> None:
    if pd.api.types.is_numeric_dtype(wanted.dtype):
        values = pd.to_numeric(found).to_numpy(np.float64)
        np.testing.assert_allclose(values, wanted.to_numpy(np.float64), rtol=1e-5, atol=1e-37)
    else:
        assert found.fillna("").tolist() == wanted.fillna("").tolist()


def test_facts_arrive_whole(open_page: Open, plain: Path) -> None:
    report = json.loads((plain / "report.json").read_text("utf-8"))
    meta = open_page(plain).page.evaluate("() => MoeProbe.page.data.meta")
    for mine, theirs in {"T": "tokens", "rule": "rule", "caption": "caption"}.items():
        assert meta[mine] == report[theirs]
    assert meta["findings"] == report["findings"]
    assert meta["warnings"] == []
    assert meta["windows"] == report["settings"]["windows"]


@pytest.mark.parametrize("length", [*range(9), 1000])
def test_text_is_deflated_bytes_in_base_85(length: int) -> None:
    import zlib

    raw = bytes(np.random.default_rng(length).integers(0, 256, length, np.uint8))
    size, letters = to_text(raw).split("\n")
    words = [letters[at : at + 5] for at in range(0, len(letters), 5)]
    numbers = [sum(ALPHABET.index(w[-1 - i]) * 85**i for i in range(5)) for w in words]
    stream = b"".join(number.to_bytes(4, "big") for number in numbers)
    assert zlib.decompress(stream[: int(size)]) == raw


def test_letters_of_data_mean_nothing_to_html() -> None:
    assert len(set(ALPHABET)) == len(ALPHABET) == 85
    assert not set(ALPHABET) & set("<>&'\"\\` \n")
    assert f'"{ALPHABET}"' in file("js/decode.js")


@pytest.mark.parametrize("digits", [3, 5])
def test_floats_keep_their_digits(digits: int) -> None:
    rng = np.random.default_rng(0)
    values = rng.standard_normal(1000) * 10.0 ** rng.integers(-20, 20, 1000)
    found = round_float32(values, digits)
    np.testing.assert_allclose(found, values, rtol=10.0**-digits)
    special = np.array([np.nan, 0.0, -0.0, 1.0, 0.5])
    np.testing.assert_array_equal(round_float32(special, digits), special.astype(np.float32))


def test_intervals_are_those_of_the_analysis(open_page: Open, plain: Path) -> None:
    page = open_page(plain)
    cases = [
        (count, tokens, deff, median)
        for tokens in (5, 200, 10**7)
        for count in (0, 1, 4, 9, 10, 37, 199, 10**6)
        if count <= tokens
        for deff in (0.3, 2.5, 40.0, np.nan)
        for median in (0.8, 7.0)
    ]
    found = page.page.evaluate(
        "cases => cases.map(([c, t, d, m]) => MoeProbe.shareInterval(c, t, d ?? NaN, m))",
        [[c, t, None if np.isnan(d) else d, m] for c, t, d, m in cases],
    )
    count, tokens, deff, median = np.array(cases).T
    low, high = share_interval(count, tokens, deff, median)
    np.testing.assert_allclose(
        np.array(found, float), np.stack([low, high], 1), rtol=1e-8, atol=1e-15
    )


def test_no_name_is_used_twice() -> None:
    assert sorted(SCRIPTS) == sorted(path.name for path in _JS.iterdir())
    pattern = re.compile(r"^(?:async )?(?:function|const|let|class) +(\w+)", re.M)
    names = [name for script in SCRIPTS for name in pattern.findall(file(f"js/{script}"))]
    assert len(names) > 100
    assert {name for name in names if names.count(name) > 1} == set()


def test_no_script_makes_markup_of_text() -> None:
    for script in SCRIPTS:
        source = file(f"js/{script}")
        assert not re.search(r"innerHTML|insertAdjacentHTML|document\.write|\beval\(", source)
