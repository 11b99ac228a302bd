"""What the report's page costs in a browser, in the shape of DeepSeek-V3 on MMLU.

Prints when the first view is on the screen, and the processor time that the page's thread spends on
one change once all views have been drawn. Needs chromium and the developer tools.
Example: python -m benchmarks.page --brief
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
from pathlib import Path

from playwright.sync_api import Browser, CDPSession, Page, sync_playwright

from moe_probe.analysis.report.page import render
from tests.analysis.report.page.full_size import LAYERS, contents_of

SELECT = "MoeProbe.page.select(1, {})"
SUBJECT = "MoeProbe.page.set({{slice: 'subject', subject: {}}})"
CHANGES = {
    "an expert, map in view": ("relative-load", SELECT),
    "an expert, burstiness in view": ("burstiness", SELECT),
    "an expert, pairs in view": ("coactivation", SELECT),
    "a subject, map in view": ("relative-load", SUBJECT),
    "a subject, its experts in view": ("subject-volcano", SUBJECT),
}
"""What changes, where the screen is, and the script with a number to fill in."""
_RESTED = """() => new Promise(done => {
  let frames = 0;
  const next = () => (++frames < 20 ? requestAnimationFrame(next) : done());
  next();
})"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--brief", action="store_true", help="Few layers, to see that it runs.")
    brief = parser.parse_args().brief
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        path = Path(folder) / "report.html"
        contents = contents_of(Path(folder) / "trace", 2 if brief else LAYERS)
        path.write_text(render(contents, None), "utf-8")
        program = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(
            executable_path=program, args=["--no-sandbox", "--disable-gpu"]
        )
        measure(browser, path.as_uri(), rounds=2 if brief else 9)
        browser.close()


def measure(browser: Browser, address: str, rounds: int) -> None:
    """Print the figures of one page."""
    firsts = []
    for _ in range(rounds):
        page, _session = opened(browser, address)
        firsts.append(page.evaluate(_mark("moe-probe-first-view")))
        page.context.close()
    print(f"first view after {statistics.median(firsts) / 1000:.2f} s by the clock")
    page, session = opened(browser, address)
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.wait_for_timeout(4000)
    for name, (view, script) in CHANGES.items():
        page.evaluate(
            "id => document.getElementById(id).scrollIntoView("
            "{block: 'center', behavior: 'instant'})",
            view,
        )
        page.wait_for_timeout(1000)
        scripts = [script.format(number) for number in range(3, 3 + rounds)]
        print(f"{name}: {median_spent(page, session, scripts):.0f} ms of processor time")


def opened(browser: Browser, address: str) -> tuple[Page, CDPSession]:
    """A page whose first view is drawn, and where its clocks are read."""
    context = browser.new_context(offline=True, viewport={"width": 1280, "height": 900})
    page = context.new_page()
    session = context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})
    page.goto(address)
    page.wait_for_selector("html[data-ready]", state="attached")
    return page, session


def median_spent(page: Page, session: CDPSession, scripts: list[str]) -> float:
    """Median milliseconds that the page's thread works on each of some changes, once drawn."""

    def clock() -> float:
        metrics = session.send("Performance.getMetrics")["metrics"]
        return float({one["name"]: one["value"] for one in metrics}["TaskDuration"])

    spent = []
    for script in scripts:
        before = clock()
        page.evaluate(script)
        page.evaluate(_RESTED)
        spent.append(clock() - before)
    return 1000 * statistics.median(spent)


def _mark(name: str) -> str:
    return f"() => performance.getEntriesByName('{name}')[0].startTime"


if __name__ == "__main__":
    main()
