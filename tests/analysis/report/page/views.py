"""What tests of views do to a figure: where a mark lies, and whether anything is drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from tests.analysis.report.page.browser import Opened

_PLACE = """([id, x, y]) => {
  const host = document.getElementById(id);
  const view = [...Bokeh.index].find(one => host.contains(one.el));
  const box = view.canvas_view.el.getBoundingClientRect();
  const {x_scale, y_scale} = view.frame;
  return [box.x + x_scale.compute(x), box.y + y_scale.compute(y)];
}"""
_TO_MIDDLE = "plot => plot.scrollIntoView({block: 'center', behavior: 'instant'})"
_COLOURS = """canvases => Math.max(...canvases.map(canvas => new Set(new Uint32Array(
  canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data.buffer)).size))"""


def read(folder: Path, name: str) -> pd.DataFrame:
    """Return a table of a report."""
    return pd.read_csv(folder / f"tables/{name}.csv")


def shown(page: Opened, view: str) -> pd.DataFrame:
    """Return the numbers that a view shows now, as its CSV has them."""
    return pd.DataFrame(page.csv(view)).replace("", np.nan)


def numbers(page: Opened, view: str) -> pd.DataFrame:
    """Return them where all are numbers."""
    return shown(page, view).astype(float)


def choose(page: Opened, view: str, label: str, value: str) -> None:
    """Choose by value in a control of one view."""
    page.page.locator(f"#{view}").get_by_label(label, exact=True).select_option(value)
    page.wait()


def point(page: Opened, view: str, x: float, y: float) -> tuple[float, float]:
    """Scroll to a view's first figure; return where its data coordinates lie on the screen."""
    page.page.locator(f"#{view} .plot").first.evaluate(_TO_MIDDLE)
    page.wait()
    found = page.page.evaluate(_PLACE, [view, x, y])
    return float(found[0]), float(found[1])


def colours(page: Opened, view: str) -> int:
    """Return how many colours the richest canvas of a view has: 1 if nothing is drawn."""
    return int(page.page.locator(f"#{view} canvas").evaluate_all(_COLOURS))
