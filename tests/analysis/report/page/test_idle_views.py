"""Views of idle experts in a browser: numbers of the report, for any window, and selection."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from moe_probe.analysis.reading.orders import Order
from moe_probe.analysis.reading.rules import Rule
from moe_probe.analysis.report import write_report
from moe_probe.analysis.settings import Settings
from moe_probe.analysis.statistics.idle_null import expected_idle_share
from moe_probe.trace import TraceWriter, open_trace
from tests.analysis.report.page.browser import Opened
from tests.analysis.report.page.traces import IDLE, LAYERS
from tests.analysis.report.page.views import choose, numbers, point, read, shown
from tests.analysis.test_forward_passes import write_planted

Open = Callable[..., Opened]
WINDOW = "Idle for at least W ="
WINDOWS = [50, 200]
"""Those that the report was made with."""


def slide(page: Opened, step: int) -> int:
    """Move the slider of a view; return the window that is shown now."""
    page.page.locator("#idle-windows").get_by_label(WINDOW).fill(str(step))
    page.wait()
    return int(numbers(page, "idle-windows")["window"][0])


def chance_of_run(rate: float, tokens: int, window: int) -> float:
    """Chance of an idle run of W, token by token: the first one may end at any of them."""
    if window > tokens:
        return 0.0
    none = np.ones(tokens + 1)
    idle = (1 - rate) ** window
    none[window] = 1 - idle
    for length in range(window + 1, tokens + 1):
        none[length] = none[length - 1] - rate * idle * none[length - window - 1]
    return float(1 - none[tokens])


def test_slider_counts_experts_for_every_window(open_page: Open, plain: Path) -> None:
    page, experts, layers = open_page(plain), read(plain, "experts"), read(plain, "layers")
    tokens = int(layers["tokens"][0])
    last = int(str(page.page.locator("#idle-windows input").get_attribute("max")))
    windows = [slide(page, step) for step in range(0, last + 1, 4)] + [slide(page, last)]
    assert windows == sorted(set(windows))
    assert (windows[0], windows[-1]) == (10, tokens)
    for step in (0, 4, 8, last):
        window = slide(page, step)
        found = numbers(page, "idle-windows").set_index("layer")
        for spec in LAYERS:
            mine = experts[experts["layer"] == spec.layer]
            row = found.loc[spec.layer]
            assert row["experts_idle"] == (mine["longest_idle"] >= window).sum()
            assert row["experts_idle_shuffled"] == (mine["longest_idle_shuffled"] >= window).sum()
            own = sum(chance_of_run(p, tokens, window) for p in mine["frequency"])
            fair = spec.num_experts * chance_of_run(spec.top_k / spec.num_experts, tokens, window)
            assert row["experts_idle_expected"] == pytest.approx(own, rel=1e-3, abs=1e-4)
            assert row["experts_idle_expected_fair"] == pytest.approx(fair, rel=1e-3, abs=1e-4)
            intervals = window * spec.top_k / spec.num_experts
            assert row["window_fair_intervals"] == pytest.approx(intervals, rel=1e-5)
        listed = shown(page, "idle-experts")
        wanted = experts[experts["longest_idle"] >= window]
        assert sorted(listed["longest_idle"].astype(int)) == sorted(wanted["longest_idle"])
        assert listed["longest_idle"].astype(int).is_monotonic_decreasing


def test_runs_and_share_at_the_windows_of_the_settings(open_page: Open, plain: Path) -> None:
    page, experts, layers = open_page(plain), read(plain, "experts"), read(plain, "layers")
    tokens = int(layers["tokens"][0])
    stored = read(plain, "idle_windows")
    for window in WINDOWS:
        page.page.evaluate(f"MoeProbe.page.set({{window: {window}}})")
        page.wait()
        found = numbers(page, "idle-windows")
        mine = stored[stored["window"] == window].groupby("layer")
        columns = ["runs", "runs_shuffled", "expected_runs"]
        np.testing.assert_allclose(found[columns], mine[columns].sum(), rtol=1e-4, atol=1e-12)
        np.testing.assert_allclose(found["share"], mine["share"].mean(), rtol=1e-5)
        for place, spec in enumerate(LAYERS):
            rate = experts[experts["layer"] == spec.layer]["frequency"].to_numpy()
            wanted = expected_idle_share(rate, tokens, window).mean()
            assert found["expected_share"][place] == pytest.approx(wanted, rel=1e-4)
    page.page.evaluate("MoeProbe.page.set({window: 10})")
    page.wait()
    assert shown(page, "idle-windows")[["runs", "share"]].isna().all(axis=None)


def test_inside_documents_runs_are_expected_of_their_lengths(
    open_page: Open, tmp_path: Path
) -> None:
    rng, lengths = np.random.default_rng(4), [30, 30, 45, 80]
    with TraceWriter(tmp_path / "trace", layers=[LAYERS[0]], run={"model": "m"}) as writer:
        for number, length in enumerate(lengths):
            clock_TN = rng.exponential(size=(length, 16)) / (1.0 + np.arange(16) ** 2)
            ids_TK = np.argsort(clock_TN, axis=1)[:, :2]
            writer.add([ids_TK], doc_id=number, subject="law", prefix_end=0)
    settings = Settings(windows=(25,), shuffles=2, replicates=20, permutations=2)
    settings = replace(settings, order=Order.parse("request-local"))
    write_report(open_trace(tmp_path / "trace"), tmp_path / "out", settings, figure_kinds=())
    page, experts = open_page(tmp_path / "out"), read(tmp_path / "out", "experts")
    rates = experts["frequency"].to_numpy()
    page.page.evaluate("MoeProbe.page.set({window: 25})")
    page.wait()
    found = numbers(page, "idle-windows").iloc[0]
    none = [math.prod(1 - chance_of_run(p, length, 25) for length in lengths) for p in rates]
    assert found["experts_idle_expected"] == pytest.approx(16 - sum(none), rel=1e-4)
    stored = read(tmp_path / "out", "idle_windows")
    assert found["expected_runs"] == pytest.approx(stored["expected_runs"].sum(), rel=1e-4)
    shares = [length * expected_idle_share(rates, length, 25).mean() for length in lengths]
    assert found["expected_share"] == pytest.approx(sum(shares) / sum(lengths), rel=1e-4)
    page.draw_all()
    assert "expected at its own rate, all documents in one stream" in page.text("#idle-experts")


def test_forward_passes_are_the_unit(open_page: Open, tmp_path: Path) -> None:
    """Windows are those of the settings, beside the nulls of passes; maps in tokens are absent."""
    write_planted(tmp_path / "trace", 400)
    settings = Settings(order=Order.parse("forward-passes"), windows=(15, 120, 9_000), shuffles=2)
    settings = replace(settings, replicates=20, permutations=2)
    write_report(open_trace(tmp_path / "trace"), tmp_path / "out", settings, figure_kinds=())
    page, experts = open_page(tmp_path / "out"), read(tmp_path / "out", "experts")
    stored = read(tmp_path / "out", "idle_windows")
    page.draw_all()
    slider = page.page.locator("#idle-windows input").first
    for step, window in enumerate(settings.windows):
        slider.fill(str(step))
        page.wait()
        found, mine = numbers(page, "idle-windows").iloc[0], stored[stored["window"] == window]
        assert found["window"] == window
        assert found["experts_idle"] == (experts["longest_idle"] >= window).sum()
        assert found["runs"] == mine["runs"].sum()
        if window < 400:
            # Runs of one expert are few enough for their number to be the chance of any.
            assert found["expected_runs"] == pytest.approx(mine["expected_runs"].sum(), rel=1e-4)
            fair = mine["expected_runs_fair"].sum()
            assert found["experts_idle_expected_fair"] == pytest.approx(fair, rel=0.01, abs=1e-9)
            assert found["window_fair_intervals"] == pytest.approx(window * 8 * 2 / 16)
    slider.fill("1")
    page.wait()
    assert "120 forward passes (960 tokens on average)" in page.text("#idle-windows .controls")
    assert page.text("#idle-windows h3") == "Experts idle for W forward passes or more"
    assert "2 experts idle for 120 forward passes or more" in page.text("#idle-windows .status")
    assert "shuffled" not in page.text("#idle-windows") + page.text("#idle-experts")
    listed = shown(page, "idle-experts")
    assert listed["longest_idle"].astype(int).tolist() == [400, 199]
    for view in ("longest-idle", "burstiness"):
        assert "Not shown: forward passes differ in their tokens" in page.text(f"#{view}")
    page.page.evaluate("MoeProbe.page.select(0, 0)")
    page.wait()
    assert "longest idle run 199 forward passes" in page.text(".bar")
    assert page.problems == []


def test_first_window_is_the_shortest_of_the_settings(open_page: Open, plain: Path) -> None:
    page = open_page(plain)
    assert set(numbers(page, "idle-windows")["window"]) == {min(WINDOWS)}
    expected = (read(plain, "experts")["longest_idle"] >= 50).sum()
    page.draw_all()
    assert page.text("#idle-windows .status").startswith(f"{expected} experts idle for 50")


def test_longest_runs_are_those_of_the_table(open_page: Open, plain: Path) -> None:
    page, experts = open_page(plain), read(plain, "experts")
    found = numbers(page, "longest-idle")
    names = ["longest_idle", "current_idle", "leading_idle", "longest_idle_shuffled"]
    assert (
        found[["layer", "expert", *names]]
        .astype(float)
        .equals(experts[["layer", "expert", *names]].astype(float))
    )
    rate = experts["layer"].map({spec.layer: spec.top_k / spec.num_experts for spec in LAYERS})
    np.testing.assert_allclose(
        found["shuffled_fair_intervals"], experts["longest_idle_shuffled"] * rate, rtol=1e-4
    )


def test_dots_are_all_experts_or_those_of_one_layer(open_page: Open, plain: Path) -> None:
    page, experts = open_page(plain), read(plain, "experts")
    found = shown(page, "burstiness")
    assert len(found) == len(experts)
    names = ["rate_deficit", "burstiness", "q_own", "p_fair", "q_fair"]
    np.testing.assert_allclose(found[names].astype(float), experts[names], rtol=1e-4, atol=1e-6)
    high = found["burstiness"].astype(float) > math.log(5)
    assert found["quarter"].str.contains("reserved").tolist() == high.tolist()
    idle = found[found["expert"].astype(int) == IDLE]
    assert set(idle["quarter"]) == {"starved: rarely used"}
    assert "healthy" in set(found["quarter"])
    choose(page, "burstiness", "Layer", "1")
    assert set(shown(page, "burstiness")["layer"].astype(int)) == {LAYERS[1].layer}


def outstanding(experts: pd.DataFrame) -> pd.Series:
    """The expert whose dot is the farthest from all others."""
    spots = experts[["rate_deficit", "burstiness"]].to_numpy()
    distance = np.linalg.norm(spots[:, None] - spots[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    return experts.iloc[int(distance.min(axis=1).argmax())]


def test_click_on_a_dot_selects_and_the_pointer_tells(open_page: Open, plain: Path) -> None:
    page, experts = open_page(plain), read(plain, "experts")
    page.draw_all()
    one = outstanding(experts)
    place = [spec.layer for spec in LAYERS].index(one["layer"])
    x, y = point(page, "burstiness", one["rate_deficit"], one["burstiness"])
    page.page.mouse.move(x + 3, y)
    assert f"layer {one['layer']}, expert {one['expert']}:" in page.text("#burstiness .tip")
    page.page.mouse.click(x + 3, y)
    page.wait()
    assert (page.state()["layer"], page.state()["expert"]) == (place, one["expert"])
    # What shows one layer shows this one's.
    assert set(numbers(page, "sorted-load")["layer"]) == {one["layer"]}
    page.page.mouse.click(*point(page, "burstiness", 0.5, 1.5))
    page.wait()
    assert page.state()["layer"] is None


def test_click_on_maps_and_lists_selects(open_page: Open, plain: Path) -> None:
    page, experts = open_page(plain), read(plain, "experts")
    page.draw_all()
    page.page.mouse.click(*point(page, "longest-idle", 6, 1))
    page.wait()
    assert (page.state()["layer"], page.state()["expert"]) == (1, 6)
    page.page.mouse.click(*point(page, "longest-idle", 13, 1))
    page.wait()
    assert page.state()["layer"] is None, "layer 7 has no expert 13"
    longest = experts.sort_values(
        ["longest_idle", "layer", "expert"], ascending=[False, True, True]
    )
    fourth = longest.iloc[3]
    page.page.mouse.click(*point(page, "idle-experts", float(fourth["longest_idle"]), 4))
    page.wait()
    assert page.state()["expert"] == fourth["expert"]
    assert LAYERS[page.state()["layer"]].layer == fourth["layer"]


@pytest.mark.parametrize(
    ("capture", "rule", "absent"),
    [
        ("counts", Rule.UNIQUE, {"variance", "coverage", "burstiness", "idle-windows"}),
        ("ids", Rule.QUESTION, {"sorted-load", "imbalance", "idle-windows", "devices"}),
        ("ids", Rule.UNIQUE, {"burstiness", "variance"}),
    ],
    ids=["no rows", "nothing counted", "no shuffled orders"],
)
def test_views_without_data_say_why(
    open_page: Open, tmp_path: Path, capture: str, rule: Rule, absent: set[str]
) -> None:
    """One prompt that is all prefix, so that no token counts as one of its question."""
    ids = np.random.default_rng(0).permuted(np.tile(np.arange(16), (40, 1)), axis=1)
    rows = [ids[:, : spec.top_k] % spec.num_experts for spec in LAYERS]
    with TraceWriter(tmp_path / "t", layers=LAYERS, capture=capture, run={"model": "m"}) as writer:
        writer.add(
            rows,
            doc_id=1,
            new_from=0,
            prefix_end=40,
            question_end=40,
            cue_end=40,
            choice_end=40,
            task="t",
            subject="s",
            area="a",
        )
    settings = Settings(rule=rule, shuffles=0, replicates=2, permutations=2)
    write_report(open_trace(tmp_path / "t"), tmp_path / "report", settings)
    page = open_page(tmp_path / "report")
    page.show_tables()
    views = page.page.locator(".view:has(.absent)").evaluate_all("all => all.map(one => one.id)")
    assert absent <= set(views)
    assert page.text("#idle-windows").count("Not shown") == ("idle-windows" in absent)


def test_controls_of_a_late_view_show_what_was_chosen_before(open_page: Open, plain: Path) -> None:
    page = open_page(plain)
    page.page.evaluate("MoeProbe.page.select(2, 1)")
    page.page.evaluate("MoeProbe.page.set({window: 200})")
    page.wait()
    page.draw_all()
    layer = page.page.locator("#sorted-load").get_by_label("Layer", exact=True)
    assert layer.input_value() == "2"
    assert page.text("#idle-experts output") == "200 tokens"
