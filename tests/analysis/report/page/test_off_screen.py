"""Views far from the screen rest until they are looked at, asked for numbers or printed."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

from tests.analysis.report.page.browser import Opened
from tests.analysis.report.page.traces import LAYERS
from tests.analysis.report.page.views import colours

Open = Callable[..., Opened]
FAR = "coactivation"
_FAR_FIGURE = f"[...Bokeh.index].find(view => document.getElementById('{FAR}').contains(view.el))"
_PIXELS = f"""(() => {{
  const {{ primary, overlays }} = {_FAR_FIGURE}.canvas_view;
  return [primary, overlays].map(layer => layer.canvas.toDataURL()).join();
}})()"""
_PRESS = f"""name => [...document.querySelectorAll('#{FAR} button')]
  .find(button => button.textContent === name).click()"""


def resting(open_page: Open, folder: Path) -> Opened:
    """Open a page whose views are all drawn, and stay at its top."""
    page = open_page(folder, reduced_motion="reduce")
    page.draw_all()
    page.page.evaluate("scrollTo(0, 0)")
    page.page.wait_for_timeout(300)
    return page


def marked(page: Opened) -> bool:
    """Whether the far view frames the selected expert."""
    found = page.page.evaluate(
        f"() => {_FAR_FIGURE}.model.renderers.some(one => one.glyph.type === 'Rect'"
        " && one.data_source.data.x.length > 0)"
    )
    return bool(found)


def test_a_far_view_follows_when_it_is_looked_at(open_page: Open, plain: Path) -> None:
    page = resting(open_page, plain)
    page.page.evaluate("MoeProbe.page.select(0, 1)")
    page.wait()
    page.page.wait_for_timeout(100)
    assert not marked(page)
    layer = page.page.locator(f"#{FAR}").get_by_label("Layer", exact=True)
    assert layer.input_value() == "0"
    page.page.locator(f"#{FAR}").scroll_into_view_if_needed()
    page.wait()
    assert marked(page)


def test_numbers_of_a_far_view_are_current(open_page: Open, plain: Path) -> None:
    page = resting(open_page, plain)
    page.page.evaluate(_PRESS, "Show as table")
    for place, spec in enumerate(LAYERS[:2]):
        page.page.evaluate("place => MoeProbe.page.set({shownLayer: place})", place)
        page.wait()
        with page.page.expect_download() as found:
            page.page.evaluate(_PRESS, "Download CSV")
        rows = csv.DictReader(found.value.path().read_text("utf-8").splitlines())
        assert {row["layer"] for row in rows} == {str(spec.layer)}
        # Whoever presses a button sees what it was pressed for.
        first = page.page.locator(f"#{FAR} tbody td").first
        assert first.text_content() == str(spec.layer)
    page.page.evaluate("MoeProbe.page.set({shownLayer: 0})")
    page.wait()
    page.page.locator(f"#{FAR}").scroll_into_view_if_needed()
    page.wait()
    assert page.page.locator(f"#{FAR} tbody td").first.text_content() == str(LAYERS[0].layer)


def test_paper_has_the_last_change(open_page: Open, plain: Path) -> None:
    page = resting(open_page, plain)
    before = page.page.evaluate(_PIXELS)
    # Runs after those of the page, before anything else does.
    page.page.evaluate(
        f"() => addEventListener('beforeprint', () => {{ window.onPaper = {_PIXELS}; }})"
    )
    page.page.evaluate("MoeProbe.page.select(0, 1)")
    page.wait()
    page.page.pdf()
    on_paper = page.page.evaluate("() => window.onPaper")
    assert on_paper != before
    page.page.locator(f"#{FAR}").scroll_into_view_if_needed()
    page.wait()
    assert page.page.evaluate(_PIXELS) == on_paper


def test_button_prints_every_figure(open_page: Open, plain: Path) -> None:
    page = open_page(plain)
    assert page.page.locator(f"#{FAR} canvas").count() == 0
    page.page.evaluate("() => { window.print = () => { window.printed = true; }; }")
    page.page.get_by_role("button", name="Print").click()
    page.page.wait_for_function("() => window.printed")
    views = page.page.locator(".view:has(.host)")
    empty = page.page.locator(".host:empty")
    assert empty.count() == 0
    drawn = [str(views.nth(n).get_attribute("id")) for n in range(views.count())]
    assert len(drawn) > 15
    for view in set(drawn) - {"document"}:
        assert colours(page, view) > 3, view
