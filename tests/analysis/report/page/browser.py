"""A page of a report in a browser without a network, and what went wrong in it."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page

from moe_probe.analysis.tables.origin import COLUMNS

AXE = files("axe_playwright_python") / "axe.min.js"


@dataclass
class Opened:
    """One page, opened from its file."""

    page: Page
    problems: list[str] = field(default_factory=list)
    """Requests to anything but the file, errors of scripts and of the console."""

    def wait(self) -> None:
        """Wait until what was asked for is drawn."""
        self.page.evaluate(
            "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
        )

    def draw_all(self) -> None:
        """Draw every view, also those far from the screen."""
        self.page.evaluate("dispatchEvent(new Event('beforeprint'))")
        self.wait()

    def show_tables(self) -> None:
        """Draw every view and show its table."""
        self.draw_all()
        closed = "document.querySelectorAll('.below [aria-expanded=false]')"
        self.page.evaluate(f"() => {closed}.forEach(button => button.click())")
        self.wait()

    def text(self, selector: str) -> str:
        """Return the text of the one element that a selector finds."""
        return self.page.locator(selector).inner_text()

    def state(self) -> dict[str, Any]:
        """Return the page's state."""
        return dict(self.page.evaluate("() => ({...MoeProbe.page.state})"))

    def download(self, view: str, button: str = "Download CSV") -> bytes:
        """Press a button of a view that hands out a file; return it."""
        # A view that is drawn as it comes near moves what lies below.
        self.draw_all()
        with self.page.expect_download() as found:
            self.page.locator(f"#{view}").get_by_role("button", name=button).click()
        return found.value.path().read_bytes()

    def csv(self, view: str) -> list[dict[str, str]]:
        """Return the rows of a view's CSV, without what says how they were counted."""
        rows = csv.DictReader(io.StringIO(self.download(view).decode("utf-8")))
        told = COLUMNS.values()
        return [{name: row[name] for name in row if name not in told} for row in rows]

    def violations(self, selector: str = "html") -> list[str]:
        """Return what axe-core finds inside an element that is serious or critical."""
        self.page.evaluate(AXE.read_text("utf-8"))
        found = self.page.evaluate(
            "selector => axe.run(selector, {resultTypes: ['violations']})", selector
        )
        return [
            f"{violation['id']}: {node['html'][:200]} {node['failureSummary'][:300]}"
            for violation in found["violations"]
            if violation["impact"] in ("serious", "critical")
            for node in violation["nodes"]
        ]


@contextmanager
def opened(browser: Browser, path: Path, **options: Any) -> Iterator[Opened]:
    """Open a file with the network off; options are those of a context, such as viewport."""
    options = {"viewport": {"width": 1280, "height": 900}, "color_scheme": "light", **options}
    context = browser.new_context(offline=True, accept_downloads=True, **options)
    context.set_default_timeout(20_000)
    page = context.new_page()
    shown = Opened(page)

    def requested(url: str) -> None:
        if url != path.as_uri() and not url.startswith(("data:", "blob:")):
            shown.problems.append(f"requested {url[:200]}")

    def said(kind: str, text: str) -> None:
        # A hint of chromium for whoever reads many pixels from a canvas.
        if kind in ("error", "warning") and "willReadFrequently" not in text:
            shown.problems.append(f"console {kind}: {text}")

    page.on("request", lambda request: requested(request.url))
    page.on("console", lambda message: said(message.type, message.text))
    page.on("pageerror", lambda error: shown.problems.append(f"error: {error}"))
    page.goto(path.as_uri())
    page.wait_for_selector("html[data-ready]", state="attached")
    page.wait_for_selector(".view[data-drawn]")
    shown.wait()
    yield shown
    context.close()
