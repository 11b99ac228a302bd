"""One browser, and reports to open in it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, sync_playwright

from moe_probe.analysis.reading.rules import default_rule
from moe_probe.analysis.report import write_report
from moe_probe.analysis.settings import Settings
from moe_probe.trace import open_trace
from tests.analysis.report.page import traces
from tests.analysis.report.page.browser import Opened, opened

_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_ARGUMENTS = (
    *("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"),
    *("--disable-component-update", "--disable-sync"),
)


# Not for the whole session: an event loop runs in this thread while the browser does.
@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """A browser that lives for one file of tests."""
    found = [shutil.which(name) for name in _BROWSERS]
    program = next(filter(None, found), None)
    if program is None:
        pytest.fail(f"None of {', '.join(_BROWSERS)} is installed: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(_ARGUMENTS))
        yield browser
        browser.close()


def report_of(trace: Path) -> Path:
    """Write the report of a trace, with few resamplings, and return its folder."""
    found = open_trace(trace)
    settings = Settings(
        rule=default_rule(found), windows=(50, 200), shuffles=4, replicates=20, permutations=20
    )
    output = trace.parent / f"{trace.name}-report"
    # Figures have tests of their own, and take longer to draw than all else.
    write_report(found, output, settings, figure_kinds=())
    return output


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a report: three layers, three subjects in two areas."""
    folder = tmp_path_factory.mktemp("plain")
    return report_of(traces.write(folder / "trace", traces.SUBJECTS))


@pytest.fixture(scope="session")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a report all of whose names are hostile."""
    folder = tmp_path_factory.mktemp("hostile")
    names = {name: traces.HOSTILE[-1 - number] for number, name in enumerate(traces.HOSTILE)}
    run: dict[str, Any] = {"model": traces.SCRIPT + "\u202e", "tasks": traces.HOSTILE}
    run["engine"] = {"name": traces.SCRIPT, "version": "\n"}
    return report_of(traces.write(folder / "trace", names, task=traces.HOSTILE[0], **run))


@pytest.fixture
def open_page(chromium: Browser) -> Iterator[Callable[..., Opened]]:
    """Open a report's page; any request or error of any page opened fails the test."""
    with ExitStack() as stack:
        pages: list[Opened] = []

        def open_one(folder: Path, **options: Any) -> Opened:
            pages.append(stack.enter_context(opened(chromium, folder / "report.html", **options)))
            return pages[-1]

        yield open_one
        assert [problem for page in pages for problem in page.problems] == []
