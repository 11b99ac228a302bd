"""Names from a trace are shown as text, whatever they contain, on a page that stays readable."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.analysis.report.page.browser import Opened
from tests.analysis.report.page.traces import HOSTILE, SCRIPT

Open = Callable[..., Opened]
PHONE = {"width": 390, "height": 844}


def test_hostile_names_are_text(open_page: Open, hostile: Path) -> None:
    page = open_page(hostile)
    page.draw_all()
    assert page.page.evaluate("() => window.harmed") is None
    assert SCRIPT in page.text("h1")
    assert page.page.locator("main img, main b, main script").count() == 0
    options = (
        page.page.locator("#relative-load")
        .get_by_label("Text", exact=True)
        .locator("option")
        .all_inner_texts()
    )
    assert SCRIPT[:16] in " ".join(options)
    assert all(len(option) < 120 for option in options)
    names = page.page.evaluate("() => MoeProbe.page.data.meta.subjects.map(s => s.subject)")
    assert sorted(names) == sorted(HOSTILE)
    page.show_tables()
    assert page.page.locator("main img, main b, main script").count() == 0
    assert page.page.evaluate("() => window.harmed") is None


def test_hostile_names_survive_into_the_csv(open_page: Open, hostile: Path) -> None:
    page = open_page(hostile)
    rows = [["name", "value"], *([name, "1"] for name in HOSTILE)]
    text = page.page.evaluate("rows => MoeProbe.csv(rows[0], rows.slice(1))", rows)
    assert list(csv.reader(io.StringIO(text, newline=""))) == rows


@pytest.mark.parametrize("report", ["plain", "hostile"])
def test_nothing_turns_the_direction_of_text(
    open_page: Open, report: str, request: pytest.FixtureRequest
) -> None:
    page = open_page(request.getfixturevalue(report))
    page.draw_all()
    text = page.page.evaluate("() => document.body.innerText")
    assert not {"\u202e", "\u200f", "\u2067", "\x1b", "\x00"} & set(text)


@pytest.mark.parametrize("report", ["plain", "hostile"])
def test_a_phone_never_scrolls_sideways(
    open_page: Open, report: str, request: pytest.FixtureRequest
) -> None:
    page = open_page(request.getfixturevalue(report), viewport=PHONE, has_touch=True)
    page.show_tables()
    assert page.page.evaluate("() => document.documentElement.scrollWidth") == PHONE["width"]
