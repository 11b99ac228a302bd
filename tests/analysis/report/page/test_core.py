"""The page in a browser: what every control does, and that its numbers are the report's."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from moe_probe.analysis import Analysis, analyse
from moe_probe.analysis.statistics.intervals import share_interval
from moe_probe.analysis.statistics.moderated import centred_within, interval_deffs
from tests.analysis.report.page.browser import Opened
from tests.analysis.report.page.traces import IDLE, LAYERS, SUBJECTS

Open = Callable[..., Opened]
MAP = "relative-load"


def tables(folder: Path, name: str) -> pd.DataFrame:
    return pd.read_csv(folder / f"tables/{name}.csv")


def test_summary_says_what_the_report_says(open_page: Open, plain: Path) -> None:
    page = open_page(plain)
    report = json.loads((plain / "report.json").read_text("utf-8"))
    text = page.text("#summary")
    assert len(report["findings"]) == 3
    for finding in report["findings"]:
        assert finding in text
    assert f"{report['tokens']:,}" in text
    assert report["caption"] in page.text(f"#{MAP} figcaption")


def test_map_has_the_numbers_of_the_table(open_page: Open, plain: Path) -> None:
    page, experts = open_page(plain), tables(plain, "experts")
    found = pd.DataFrame(page.csv(MAP)).astype(float)
    assert found[["layer", "expert"]].to_numpy().tolist() == (
        experts[["layer", "expert"]].to_numpy().tolist()
    )
    assert found["count"].tolist() == experts["count"].tolist()
    for name in ("relative_load", "ci_low", "ci_high"):
        np.testing.assert_allclose(found[name], experts[name], rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("subject", SUBJECTS)
def test_map_shows_one_subject(open_page: Open, plain: Path, subject: str) -> None:
    page, wanted = open_page(plain), tables(plain, "subjects")
    page.page.locator(f"#{MAP}").get_by_label("Text", exact=True).select_option(label=subject)
    page.wait()
    wanted = wanted[wanted["subject"] == subject].sort_values(["layer", "expert"])
    found = pd.DataFrame(page.csv(MAP)).astype(float)
    assert found["count"].tolist() == wanted["count"].tolist()
    frequency = found["count"] / found["tokens"]
    np.testing.assert_allclose(frequency, wanted["frequency"])
    assert page.state()["subject"] == sorted(SUBJECTS).index(subject)


@pytest.fixture(scope="module")
def analysis(plain: Path) -> Analysis:
    return analyse(plain.parent / "trace", shuffles=0, replicates=2, permutations=0)


@pytest.mark.parametrize("text", [*SUBJECTS, "stem", "humanities"])
def test_intervals_of_a_part_are_of_its_own_documents(
    open_page: Open, plain: Path, analysis: Analysis, text: str
) -> None:
    """The level of the part, the pattern of experts inside all subjects."""
    page = open_page(plain)
    page.page.locator(f"#{MAP}").get_by_label("Text", exact=True).select_option(label=text)
    page.wait()
    rows = pd.DataFrame(page.csv(MAP)).astype(float)
    chosen = [text in (subject, area) for _, subject, area in analysis.sums.counts.axes.groups]
    for layer, state in analysis.sums.layers.items():
        found = rows[rows["layer"] == layer].sort_values("expert")
        level = np.median(interval_deffs(state.moments.of(np.array(chosen)).pooled()))
        within_N = interval_deffs(centred_within(state.moments))[0]
        counts_N, tokens = found["count"].to_numpy(), found["tokens"].iloc[0]
        own_N = level * 2 ** (np.round(8 * np.log2(within_N / np.median(within_N))) / 8)
        to_load = len(counts_N) * tokens / counts_N.sum()
        for name, bound_N in zip(
            ("ci_low", "ci_high"), share_interval(counts_N, tokens, own_N, level), strict=True
        ):
            np.testing.assert_allclose(found[name], bound_N * to_load, rtol=2e-3, atol=1e-9)


def test_areas_are_sums_of_subjects_and_segments_of_all(open_page: Open, plain: Path) -> None:
    page, subjects = open_page(plain), tables(plain, "subjects")
    box = page.page.locator(f"#{MAP}").get_by_label("Text", exact=True)
    counts = subjects.pivot(index=["layer", "expert"], columns="subject", values="count")

    def shown(label: str) -> np.ndarray:
        box.select_option(label=label)
        page.wait()
        return np.array([float(row["count"]) for row in page.csv(MAP)])

    assert shown("humanities").tolist() == (counts["law"] + counts["logic"]).tolist()
    assert shown("stem").tolist() == counts["anatomy"].tolist()
    segments = ("prefix", "question", "cue", "choice")
    by_segment = np.sum([shown(name) for name in segments], axis=0)
    assert by_segment.tolist() == counts.sum(axis=1).tolist()


def test_other_rules_count_less(open_page: Open, plain: Path) -> None:
    page = open_page(plain)
    box = page.page.locator(f"#{MAP}").get_by_label("Text", exact=True)
    rules = tables(plain, "rules").set_index(["layer", "rule"])
    for name in ("question", "decision"):
        box.select_option(value=f"rule:{name}")
        page.wait()
        found = pd.DataFrame(page.csv(MAP)).astype(float).groupby("layer")
        assert found["count"].sum().tolist() == rules.xs(name, level=1)["assignments"].tolist()
        largest = found["relative_load"].max() - 1
        np.testing.assert_allclose(largest, rules.xs(name, level=1)["max_vio"], rtol=1e-5)


def test_every_csv_ends_as_files_of_tables_do(open_page: Open, plain: Path) -> None:
    page, told = open_page(plain), ["counting_rule", "token_order"]
    page.draw_all()

    def ends(view: str) -> pd.DataFrame:
        return pd.read_csv(io.BytesIO(page.download(view))).iloc[:, -2:].drop_duplicates()

    expected = tables(plain, "experts").iloc[:, -2:].drop_duplicates()
    assert list(expected) == told
    cards = page.page.locator(".view:has(.buttons)").evaluate_all("all => all.map(one => one.id)")
    assert len(cards) > 15
    for view in cards:
        # A browser drops what exceeds ten downloads a second.
        page.page.wait_for_timeout(120)
        found = ends(view)
        # The one view that shows all tokens, as they were stored.
        if view == "document":
            assert not {*told} & {*found}
        else:
            assert found.equals(expected), view
    box = page.page.locator(f"#{MAP}").get_by_label("Text", exact=True)
    box.select_option(value="rule:question")
    page.wait()
    assert ends(MAP).values.tolist() == [["question", "canonical"]]


def test_experts_sort_by_load(open_page: Open, plain: Path) -> None:
    page = open_page(plain)
    page.page.locator(f"#{MAP}").get_by_label("Experts", exact=True).select_option("load")
    page.wait()
    found = pd.DataFrame(page.csv(MAP)).astype(float)
    for spec in LAYERS:
        mine = found[found["layer"] == spec.layer]
        assert mine["relative_load"].is_monotonic_decreasing
        assert sorted(mine["expert"]) == list(range(spec.num_experts))
        assert mine["expert"].iloc[-1] == IDLE


def test_table_pages_and_sorts(open_page: Open, plain: Path) -> None:
    page, experts = open_page(plain), tables(plain, "experts")
    view = page.page.locator(f"#{MAP}")
    view.get_by_role("button", name="Show as table").click()
    rows = view.locator("tbody tr")
    assert rows.count() == min(50, len(experts)) == 44
    assert "rows 1 to 44 of 44" in view.inner_text()
    view.get_by_role("button", name="count").click()
    first = rows.first.locator("td").all_inner_texts()
    assert first[2] == f"{experts['count'].max():,}"
    assert view.locator("th[aria-sort=descending]").inner_text().startswith("count")
    view.get_by_role("button", name="count").press("Enter")
    assert rows.first.locator("td").all_inner_texts()[1:3] == [str(IDLE), "0"]
    view.get_by_role("button", name="Hide table").click()
    assert view.locator("table").count() == 0


def test_selection_by_click_keyboard_and_form(open_page: Open, plain: Path) -> None:
    page, experts = open_page(plain), tables(plain, "experts")
    bar = page.page.get_by_role("region", name="Selected expert")
    assert "No expert is selected" in bar.inner_text()
    plot = page.page.locator(f"#{MAP} .plot")
    plot.press("ArrowRight")
    page.wait()
    assert (page.state()["layer"], page.state()["expert"]) == (0, 0)
    for key in ("ArrowDown", "ArrowRight", "ArrowRight"):
        plot.press(key)
        page.wait()
    assert (page.state()["layer"], page.state()["expert"]) == (1, 2)
    row = experts[(experts["layer"] == 7) & (experts["expert"] == 2)].iloc[0]
    said = bar.inner_text()
    assert "Layer 7, expert 2" in said
    assert f"selections {row['count']:,}" in said
    assert f"{row['count']:,} selections" in page.text(f"#{MAP} [role=status]")
    plot.press("Escape")
    page.wait()
    assert page.state()["layer"] is None
    bar.get_by_label("Layer", exact=True).select_option(label="layer 8")
    # The page then writes the layer's first expert into the field.
    page.wait()
    bar.get_by_label("expert", exact=True).fill("5")
    bar.get_by_label("expert", exact=True).press("Enter")
    page.wait()
    assert "Layer 8, expert 5: selections 0" in bar.inner_text()
    plot.click(position={"x": 200, "y": 40})
    page.wait()
    assert page.state()["layer"] == 0
    assert "Layer 3, expert" in bar.inner_text()


def test_pointer_shows_count_interval_and_chance(open_page: Open, plain: Path) -> None:
    page = open_page(plain)
    page.page.locator(f"#{MAP} .plot").hover(position={"x": 200, "y": 40})
    tip = page.page.locator(f"#{MAP} .tip")
    tip.wait_for(state="visible")
    for words in ("layer 3, expert", "selections by", "95% interval", "fair routing:"):
        assert words in tip.inner_text()


def test_intervals_of_a_part_name_their_design_effect(open_page: Open, plain: Path) -> None:
    page = open_page(plain)
    view, words = page.page.locator(f"#{MAP}"), "design effect of all text"
    page.page.evaluate("MoeProbe.page.select(0, 1)")
    view.get_by_role("button", name="Show as table").click()
    page.wait()
    said, caption = view.locator("[role=status]"), view.locator("caption")
    assert "95% interval" in said.inner_text()
    assert words not in said.inner_text() + caption.inner_text()
    for text in ("subject:0", "segment:1", "rule:question", "area:stem"):
        view.get_by_label("Text", exact=True).select_option(value=text)
        page.wait()
        is_borrowed = text.startswith(("segment", "rule"))
        assert (words in said.inner_text()) == is_borrowed
        assert (words in caption.inner_text()) == is_borrowed


def test_image_of_a_figure_is_saved(open_page: Open, plain: Path) -> None:
    page = open_page(plain)
    assert page.download(MAP, "Save image").startswith(b"\x89PNG")


def test_dark_mode_is_kept(open_page: Open, plain: Path) -> None:
    page = open_page(plain)
    button = page.page.get_by_role("button", name="Dark mode")
    background = "() => getComputedStyle(document.body).backgroundColor"
    light = page.page.evaluate(background)
    button.click()
    assert button.get_attribute("aria-pressed") == "true"
    dark = page.page.evaluate(background)
    assert dark != light
    page.page.reload()
    page.page.wait_for_selector("html[data-ready]", state="attached")
    assert page.page.evaluate(background) == dark
