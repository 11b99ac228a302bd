"""Views of pairs and of repeats in a browser: numbers of the report, and linked selection."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.analysis.conftest import make_run
from tests.analysis.report.page.browser import Opened
from tests.analysis.report.page.comparing import drawn, same, steady
from tests.analysis.report.page.conftest import report_of
from tests.analysis.report.page.traces import IDLE, LAYERS, SUBJECTS
from tests.analysis.report.page.views import choose, read, shown

Open = Callable[..., Opened]
NAMES = [spec.layer for spec in LAYERS]
SORTED = sorted(SUBJECTS)


def test_pairs_are_those_of_the_table(open_page: Open, plain: Path) -> None:
    page, table = drawn(open_page, plain, "coactivation"), read(plain, "coactivation")
    values = ["count", "conditional", "jaccard", "expected", "ratio", "z"]
    for place, layer in enumerate(NAMES):
        choose(page, "coactivation", "Layer", str(place))
        found, wanted = shown(page, "coactivation"), table[table["layer"] == layer]
        assert len(found) == len(wanted)
        if len(wanted):
            same(found, wanted, ["layer", "expert", "other"], values, atol=1e-5)
    assert LAYERS[2].top_k == 1
    assert "no expert is selected with another" in page.text("#coactivation .status")


def test_click_on_a_pair_selects_its_row(open_page: Open, plain: Path) -> None:
    page = drawn(open_page, plain, "coactivation")
    choose(page, "coactivation", "Layer", "1")
    choose(page, "coactivation", "Order", "id")
    page.page.mouse.click(*steady(page, "coactivation", 7, 3))
    page.wait()
    assert (page.state()["layer"], page.state()["expert"]) == (1, 3)
    page.page.mouse.move(*steady(page, "coactivation", 7.1, 3))
    tip = page.page.locator("#coactivation .tip")
    tip.wait_for(state="visible")
    table = read(plain, "coactivation")
    is_it = (table["layer"] == NAMES[1]) & (table["expert"] == 3) & (table["other"] == 7)
    assert f"{table['count'][is_it].item():,} tokens select both" in tip.inner_text()
    assert f"select 7, fair {100 / (LAYERS[1].num_experts - 1):.3g} %" in tip.inner_text()
    assert IDLE not in (3, 7)


def test_repeats_are_those_of_the_table(open_page: Open, plain: Path) -> None:
    page, table = drawn(open_page, plain, "repeats"), read(plain, "repeats")
    table["subject"] = table["subject"].fillna("all")
    table = table.rename(columns={"overlap_null": "overlap_ratio_null"})
    table = table.rename(columns={"overlap_null_own": "overlap_ratio_null_own"})
    values = ["pairs", "overlap_ratio", "overlap_ratio_null", "overlap_ratio_null_own", "excess"]
    choose(page, "repeats", "Subject", "1")
    for place, layer in enumerate(NAMES):
        choose(page, "repeats", "Layer", str(place))
        mine = table[(table["layer"] == layer) & table["subject"].isin(["all", SORTED[1]])]
        found = shown(page, "repeats").dropna(subset=["overlap_ratio"])
        mine = mine.dropna(subset=["overlap_ratio"])
        assert len(found) == len(mine) > 8
        # Rates of single subjects have four digits.
        same(found, mine, ["layer", "subject", "lag"], values, rtol=1e-4, atol=1e-4)


def test_nulls_of_other_rates(open_page: Open, plain: Path) -> None:
    """With one expert per token all three rates are the same, and so are their nulls."""
    page = drawn(open_page, plain, "repeats")
    choose(page, "repeats", "Layer", "2")
    found = {}
    for name in ("overlap_ratio", "first_choice", "any_overlap"):
        choose(page, "repeats", "Measure", name)
        columns = [name, f"{name}_null", f"{name}_null_own", f"other_token_{name}"]
        found[name] = shown(page, "repeats")[columns].astype(float).to_numpy()
    for numbers in found.values():
        np.testing.assert_allclose(numbers, found["overlap_ratio"], rtol=2e-5)
    np.testing.assert_allclose(found["any_overlap"][:, 1], 1 / LAYERS[2].num_experts)
    frequency_N = read(plain, "experts").groupby("layer").get_group(NAMES[2])["frequency"]
    np.testing.assert_allclose(found["any_overlap"][:, 2], (frequency_N**2).sum(), rtol=1e-5)


@pytest.mark.parametrize("capture", ["ids", "counts"])
def test_views_say_what_a_trace_lacks(open_page: Open, tmp_path: Path, capture: str) -> None:
    """Few documents and no token ids, or nothing but counts."""
    run = make_run(tmp_path / "trace", 3, capture=capture)
    page = drawn(open_page, report_of(run.trace.path), "subject-ranking")
    rows = "the trace has no rows of tokens"
    reasons = {
        "ids": {
            "subject-volcano": "no subject has the 30 documents that a test needs",
            "document": f"{rows} with token ids after a few-shot prefix",
        },
        "counts": {
            "subject-volcano": "the trace does not say what its documents are",
            "coactivation": rows,
            "repeats": rows,
            "document": rows,
        },
    }
    for view, reason in reasons[capture].items():
        assert page.text(f"#{view} .absent") == f"Not shown: {reason}."
    said = page.text("#subject-ranking .status")
    why = {"ids": "it has too few documents", "counts": "its documents are not known"}
    assert why[capture] in said
    assert "may be noise" in said
    lift = shown(page, "subject-ranking")["lift"].astype(float)
    assert lift.is_monotonic_decreasing
