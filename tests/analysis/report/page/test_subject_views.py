"""Views of subjects and of structure in a browser: drawn, driven, and numbers of the report."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from tests.analysis.report.page.browser import Opened
from tests.analysis.report.page.comparing import drawn, same, steady
from tests.analysis.report.page.traces import LAYERS, SUBJECTS
from tests.analysis.report.page.views import choose, colours, read, shown

Open = Callable[..., Opened]
VIEWS = {
    "subject-divergence": ["Layer", "Colour", "Subject"],
    "subject-volcano": ["Subject", "Layer"],
    "subject-ranking": ["Subject", "Layer", "Rank by", "Experts"],
    "coactivation": ["Layer", "Order"],
    "repeats": ["Layer", "Measure", "Subject"],
}
NAMES = [spec.layer for spec in LAYERS]
SORTED = sorted(SUBJECTS)
KEYS = ["layer", "expert", "subject"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_view_is_drawn(open_page: Open, plain: Path, scheme: str) -> None:
    page = drawn(open_page, plain, *VIEWS, color_scheme=scheme)
    for view in VIEWS:
        assert colours(page, view) > 10, view


def test_every_control_does_something(open_page: Open, plain: Path) -> None:
    page = drawn(open_page, plain, *VIEWS)
    drawing_only = {("subject-divergence", "Colour"), ("subject-divergence", "Subject")}
    drawing_only |= {("coactivation", "Order")}
    for view, labels in VIEWS.items():
        card = page.page.locator(f"#{view}")
        assert card.locator(".controls label").all_inner_texts() == labels
        for label in labels:
            options = card.get_by_label(label, exact=True).locator("option")
            values = options.evaluate_all("all => all.map(one => one.value)")
            tables, pictures = set(), set()
            for value in [*values[1:], values[0]]:
                choose(page, view, label, value)
                tables.add(page.download(view))
                pictures.add(card.locator(".plot").screenshot())
            assert len(pictures) > 1, (view, label)
            # A layer without pairs has no rows, and one of them shows nothing.
            assert len(tables) == (1 if (view, label) in drawing_only else len(values))


def test_divergences_are_those_of_the_table(open_page: Open, plain: Path) -> None:
    page, table = drawn(open_page, plain, "subject-divergence"), read(plain, "divergence")
    values = ["divergence_bits", "divergence_null_bits"]
    mean = table.groupby(["subject", "other"], as_index=False)[values].mean()
    found = shown(page, "subject-divergence")
    assert found["layer"].isna().all()
    same(found, mean, ["subject", "other"], values)
    for place, layer in enumerate(NAMES):
        choose(page, "subject-divergence", "Layer", str(place))
        wanted = table[table["layer"] == layer]
        found = shown(page, "subject-divergence")
        same(found, wanted, ["layer", "subject", "other"], values)


def test_rows_are_in_the_order_of_average_linkage(open_page: Open, plain: Path) -> None:
    page, table = drawn(open_page, plain, "subject-divergence"), read(plain, "divergence")
    choose(page, "subject-divergence", "Layer", "1")
    bits = table[table["layer"] == NAMES[1]]["divergence_bits"].to_numpy()
    tree = linkage(np.sqrt(bits), "average")
    assert squareform(bits).shape == (3, 3)
    for row, subject in enumerate(leaves_list(tree)):
        page.page.mouse.click(*steady(page, "subject-divergence", 1.0, row))
        page.wait()
        assert page.state()["subject"] == subject
        box = page.page.locator("#subject-ranking").get_by_label("Subject", exact=True)
        assert box.input_value() == str(subject)
    closest = {SORTED[leaf] for leaf in tree[0, :2].astype(int)}
    said = page.text("#subject-divergence .status").split("farthest")[0]
    assert all(name in said for name in closest)


def test_of_two_quick_clicks_both_count(open_page: Open, plain: Path) -> None:
    page = drawn(open_page, plain, "subject-divergence")

    def click(*rows: int) -> Any:
        page.page.wait_for_timeout(400)
        for place in [steady(page, "subject-divergence", 1.0, row) for row in rows]:
            page.page.mouse.click(*place)
        page.wait()
        return page.state()["subject"]

    first, last = click(0), click(2)
    assert first != last
    assert click(0, 2) == last
    assert click(2, 0) == first


def test_map_says_divergence_and_noise(open_page: Open, plain: Path) -> None:
    page = drawn(open_page, plain, "subject-divergence")
    page.page.mouse.move(*steady(page, "subject-divergence", 1.0, 0.0))
    tip = page.page.locator("#subject-divergence .tip")
    tip.wait_for(state="visible")
    assert "bits, from noise alone" in tip.inner_text()
    assert sum(name in tip.inner_text() for name in SORTED) == 2


def test_volcano_has_the_rows_of_the_table(open_page: Open, plain: Path) -> None:
    page, table = drawn(open_page, plain, "subject-volcano"), read(plain, "subjects")
    tested = table.dropna(subset=["z"])
    assert 0 < len(tested) < len(table)
    values = ["count", "frequency", "lift", "log_odds", "z", "q_value"]
    same(shown(page, "subject-volcano"), tested, KEYS, values)
    significant = tested[tested["q_value"] < 0.05]
    more, less = (int((sign * significant["z"] > 0).sum()) for sign in (1, -1))
    assert more
    assert less
    words = f"of {len(tested)} tests {more} say more and {less} less"
    assert words in page.text("#subject-volcano .status")
    choose(page, "subject-volcano", "Subject", "1")
    choose(page, "subject-volcano", "Layer", "2")
    mine = tested[(tested["subject"] == SORTED[1]) & (tested["layer"] == NAMES[2])]
    same(shown(page, "subject-volcano"), mine, KEYS, values)


def test_click_in_the_volcano_selects_the_expert(open_page: Open, plain: Path) -> None:
    page, table = drawn(open_page, plain, "subject-volcano"), read(plain, "subjects")
    choose(page, "subject-volcano", "Subject", "0")
    mine = table[table["subject"] == SORTED[0]].dropna(subset=["z"])
    farthest = mine.sort_values("log_odds").iloc[-1]
    height = np.sqrt(-np.log10(farthest["q_value"]))
    place = steady(page, "subject-volcano", farthest["log_odds"], height)
    page.page.mouse.click(*place)
    page.wait()
    assert NAMES[page.state()["layer"]] == farthest["layer"]
    assert page.state()["expert"] == farthest["expert"]
    page.page.mouse.move(place[0] + 1, place[1])
    tip = page.page.locator("#subject-volcano .tip")
    tip.wait_for(state="visible")
    assert (
        f"layer {farthest['layer']}, expert {farthest['expert']}: {SORTED[0]}" in tip.inner_text()
    )
    assert "by chance 0" in tip.inner_text()


def test_ranking_orders_the_table(open_page: Open, plain: Path) -> None:
    page = drawn(open_page, plain, "subject-ranking")
    table = read(plain, "subjects")
    choose(page, "subject-ranking", "Subject", "2")
    columns = {"z": "z", "logOdds": "log_odds", "lift": "lift", "count": "count"}
    for (by, column), side in product(columns.items(), ("more", "less")):
        choose(page, "subject-ranking", "Rank by", by)
        choose(page, "subject-ranking", "Experts", side)
        mine = table[table["subject"] == SORTED[2]].dropna(subset=[column])
        found = shown(page, "subject-ranking")
        same(found, mine, KEYS, ["count", "frequency", "lift", "log_odds", "z", "q_value"])
        ranked = found[column].astype(float)
        assert ranked.is_monotonic_increasing if side == "less" else ranked.is_monotonic_decreasing
        lift = found["frequency"].astype(float) / found["frequency_elsewhere"].astype(float)
        np.testing.assert_allclose(lift, found["lift"].astype(float), rtol=1e-5)
        sign = 1 if side == "more" else -1
        number = int(((mine["q_value"] < 0.05) & (sign * mine["z"] > 0)).sum())
        assert page.text("#subject-ranking .status").startswith(f"{number} experts are used {side}")
        # Experts without log odds have no mark.
        first = found.dropna(subset=["log_odds"]).iloc[0]
        page.page.mouse.click(*steady(page, "subject-ranking", float(first["log_odds"]), 0))
        page.wait()
        assert NAMES[page.state()["layer"]] == int(first["layer"])
        assert page.state()["expert"] == int(first["expert"])
