"""The page without a mouse, without colours, without scripts and on paper."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser

from tests.analysis.report.page.browser import Opened

Open = Callable[..., Opened]
PHONE = {"width": 390, "height": 844}


@pytest.mark.parametrize("report", ["plain", "hostile"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_serious_violation(
    open_page: Open, report: str, scheme: str, request: pytest.FixtureRequest
) -> None:
    page = open_page(request.getfixturevalue(report), color_scheme=scheme)
    page.page.locator("#relative-load").get_by_role("button", name="Show as table").click()
    page.page.evaluate("MoeProbe.page.select(0, 1)")
    page.wait()
    assert page.violations() == []


def test_landmarks_language_and_names(open_page: Open, plain: Path) -> None:
    page = open_page(plain)
    page.draw_all()
    assert page.page.locator("html").get_attribute("lang") == "en"
    for role in ("banner", "main", "navigation", "contentinfo"):
        assert page.page.get_by_role(role).count() == 1
    assert page.page.locator("h1").count() == 1
    unnamed = page.page.evaluate(
        "() => [...document.querySelectorAll('.view')].filter(view => !view.querySelector("
        "'figure[aria-label], .absent')).map(view => view.id)"
    )
    assert unnamed == []
    links = page.page.get_by_role("navigation").get_by_role("link").all()
    assert len(links) > 1
    for link in links:
        assert page.page.locator(str(link.get_attribute("href"))).count() == 1


def test_every_stop_of_the_tab_key_can_be_seen(open_page: Open, plain: Path) -> None:
    page = open_page(plain)
    page.draw_all()
    page.page.keyboard.press("Tab")
    assert page.page.evaluate("() => document.activeElement.className") == "skip"
    page.page.keyboard.press("Enter")
    assert page.page.evaluate("() => document.activeElement.id") == "content"
    seen = set()
    for _ in range(200):
        page.page.keyboard.press("Tab")
        name, outline, tag = page.page.evaluate(
            "() => { const e = document.activeElement; const s = getComputedStyle(e); return ["
            "e.innerText || e.getAttribute('aria-label') || e.labels?.[0]?.innerText || '',"
            " s.outlineStyle + s.outlineWidth, e.tagName]; }"
        )
        if tag == "BODY":
            break
        assert name, f"a {tag} without a name"
        assert outline == "solid3px", f"{name} has no visible focus"
        seen.add(name.strip().split("\n")[0])
    assert {"Show as table", "Download CSV", "Zoom in", "Save image"} <= seen


def test_idle_cells_have_a_cross_and_few_tokens_a_hatch(open_page: Open, plain: Path) -> None:
    page = open_page(plain)
    marks = (
        "() => Bokeh.documents[0].roots()[0].renderers.filter(r => ['Scatter', 'HBar']"
        ".includes(r.glyph.type)).map(r => [r.glyph.type, Array.from(r.data_source.data.y)])"
    )
    assert dict(page.page.evaluate(marks)) == {"Scatter": [0, 1, 2], "HBar": []}
    page.page.evaluate("MoeProbe.page.set({slice: 'segment:2'})")
    page.wait()
    assert dict(page.page.evaluate(marks))["HBar"] == [0, 1, 2]


def test_paper_has_figures_and_no_controls(open_page: Open, plain: Path) -> None:
    page = open_page(plain)
    page.draw_all()
    page.page.emulate_media(media="print")
    assert page.page.locator("#relative-load .plot").is_visible()
    for selector in ("nav", "#foot", ".controls", ".buttons", "#theme"):
        assert not page.page.locator(selector).first.is_visible()


def test_motion_is_reduced_when_asked_for(open_page: Open, plain: Path) -> None:
    scroll = "() => getComputedStyle(document.documentElement).scrollBehavior"
    assert open_page(plain, reduced_motion="reduce").page.evaluate(scroll) == "auto"
    assert open_page(plain, reduced_motion="no-preference").page.evaluate(scroll) == "smooth"


def test_without_scripts_there_are_words_and_a_picture(chromium: Browser, plain: Path) -> None:
    context = chromium.new_context(java_script_enabled=False, offline=True)
    page = context.new_page()
    page.goto((plain / "report.html").as_uri())
    assert "Are experts loaded unevenly?" in page.locator("main").inner_text()
    picture = page.locator("noscript img")
    assert "T = " in str(picture.get_attribute("alt"))
    box = picture.bounding_box()
    assert box is not None
    assert box["width"] > 300
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [{"width": 1280, "height": 900}, PHONE])
def test_page_has_the_colours_asked_for(
    open_page: Open, plain: Path, tmp_path: Path, scheme: str, viewport: dict[str, int]
) -> None:
    page = open_page(plain, color_scheme=scheme, viewport=viewport)
    page.draw_all()
    path = tmp_path / f"{scheme}-{viewport['width']}.png"
    page.page.screenshot(path=path, full_page=True)
    with Image.open(path) as image:
        assert image.width == viewport["width"]
        light = np.asarray(image.convert("L"), np.float64)
    # Of all colours the page's own is the most frequent.
    assert np.median(light) == pytest.approx({"light": 255, "dark": 23}[scheme], abs=8)
    assert light.std() > 10
