"""What tests of views ask for: views that are drawn, and rows that are the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tests.analysis.report.page.browser import Opened
from tests.analysis.report.page.views import point

Open = Callable[..., Opened]


def steady(page: Opened, view: str, x: float, y: float) -> tuple[float, float]:
    """Return where a figure has a place once its layout rests."""
    before, now = None, point(page, view, x, y)
    while before != now:
        page.page.wait_for_timeout(100)
        before, now = now, point(page, view, x, y)
    return now


def same(
    found: pd.DataFrame,
    wanted: pd.DataFrame,
    keys: list[str],
    values: list[str],
    *,
    rtol: float = 2e-5,
    atol: float = 1e-12,
) -> None:
    """Compare rows by their keys, in whatever order they come."""
    frames = []
    for frame in (found, wanted):
        numbers = frame[values].astype(float)
        indexed = pd.concat([frame[keys].astype(str), numbers], axis=1).set_index(keys)
        assert indexed.index.is_unique
        frames.append(indexed.sort_index())
    assert frames[0].index.tolist() == frames[1].index.tolist()
    np.testing.assert_allclose(frames[0].to_numpy(), frames[1].to_numpy(), rtol=rtol, atol=atol)


def drawn(open_page: Open, folder: Path, *views: str, **options: Any) -> Opened:
    """Open a page and draw some of its views; scrolling ends at once."""
    page = open_page(folder, reduced_motion="reduce", **options)
    for view in views:
        page.page.locator(f"#{view}").scroll_into_view_if_needed()
        page.page.wait_for_selector(f"#{view}[data-drawn] canvas")
    page.wait()
    return page
