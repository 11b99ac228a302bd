"""Heat maps show what the tables say, mark idle experts, and leave absent ones out.

Shape suffixes: L layers, M experts of the widest layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from moe_probe.analysis import Analysis, analyse
from moe_probe.analysis.figures import FIGURES, caption
from moe_probe.trace import LayerSpec, TraceWriter
from tests.analysis.figures.conftest import FEW, IDLE

RAGGED = "layers of three sizes"


def cells(axes: Any) -> np.ndarray:
    return np.ma.filled(axes.images[0].get_array().astype(float), np.nan)


def wide(table: pd.DataFrame, column: str) -> np.ndarray:
    return table.pivot(index="layer", columns="expert", values=column).to_numpy(np.float64)


def test_colours_are_log2_of_the_relative_load(planted: Analysis) -> None:
    figure: Any = FIGURES["relative_load"](planted)
    counts = wide(planted.experts, "count")
    load = counts * 16 / counts.sum(axis=1, keepdims=True)
    shown = cells(figure.axes[0])
    used = counts > 0
    np.testing.assert_allclose(shown[used], np.clip(np.log2(load[used]), -3, 3))
    assert figure.axes[0].images[0].get_clim() == (-3, 3)
    assert [text.get_text() for text in figure.axes[1].get_yticklabels()][3] == "1"


def test_idle_experts_have_a_cross_and_a_colour_of_their_own(planted: Analysis) -> None:
    axes: Any = FIGURES["relative_load"](planted).axes[0]
    (marks,) = axes.collections
    assert marks.get_offsets().tolist() == [[IDLE, 0], [IDLE, 1], [IDLE, 2]]
    image = axes.images[0]
    colours = image.to_rgba(image.get_array())
    assert {to_hex(colour) for colour in colours[:, IDLE]} == {"#ffd400"}
    fair = image.to_rgba(np.zeros(1))[0]
    assert to_hex(fair) == to_hex(image.cmap(0.5))


def test_absent_experts_let_the_hatching_through(shapes: Mapping[str, Analysis]) -> None:
    is_absent = [[e >= size for e in range(12)] for size in (8, 5, 12)]
    for name in ("relative_load", "longest_idle"):
        figure: Any = FIGURES[name](shapes[RAGGED])
        axes = figure.axes[0]
        assert axes.patch.get_hatch() == "////"
        assert np.isnan(cells(axes)).tolist() == is_absent
        assert "Hatched: no such expert." in caption(figure)
    assert "Hatched" not in caption(FIGURES["relative_load"](shapes["five tokens"]))


def test_a_layer_that_selects_nothing_is_told_from_absent_experts(tmp_path: Path) -> None:
    layers = [
        LayerSpec(layer=0, num_experts=4, top_k=1),
        LayerSpec(layer=1, num_experts=4, top_k=1, empty_slots=True),
    ]
    with TraceWriter(tmp_path / "t", layers=layers) as writer:
        writer.add([np.arange(8)[:, None] % 4, np.full((8, 1), -1)], subject="s", doc_id=0)
    said = caption(FIGURES["relative_load"](analyse(tmp_path / "t", **FEW)))
    assert "A layer hatched from end to end: nothing was selected in it." in said
    assert "no such expert" not in said


@pytest.mark.parametrize(
    ("name", "labels"),
    [(RAGGED, ["1", "3", "7"]), ("60 layers of 256", [str(n) for n in range(3, 63, 2)])],
)
def test_layers_carry_their_own_index(
    shapes: Mapping[str, Analysis], name: str, labels: list[str]
) -> None:
    for figure in ("relative_load", "longest_idle"):
        axes: Any = FIGURES[figure](shapes[name]).axes[0]
        assert [text.get_text() for text in axes.get_yticklabels()] == labels


def test_idle_runs_are_in_mean_distances_of_fair_selections(planted: Analysis) -> None:
    figure: Any = FIGURES["longest_idle"](planted)
    left, right, bar = figure.axes
    # Two of 16 experts: a fair expert is selected every 8 tokens.
    for axes, column in ((left, "longest_idle"), (right, "longest_idle_shuffled")):
        np.testing.assert_allclose(cells(axes), wide(planted.experts, column) / 8)
        assert axes.collections[0].get_offsets()[:, 0].tolist() == [IDLE] * 3
    assert left.images[0].get_clim() == right.images[0].get_clim()
    assert [left.get_title("left"), right.get_title("left")] == [
        "order: canonical",
        "median over shuffled documents",
    ]
    labels = dict(
        zip(bar.get_yticks(), [text.get_text() for text in bar.get_yticklabels()], strict=True)
    )
    assert labels[50] == "50 (400 tokens)"
    tokens = planted.layers["tokens"][0]
    chance = (np.log(tokens / 8) + np.euler_gamma) / -np.log(1 - 1 / 8) - 0.5
    (place,) = [value for value, text in labels.items() if "chance" in text]
    assert place == pytest.approx(chance / 8, rel=0.01)


def test_ticks_of_the_scale_keep_apart(shapes: Mapping[str, Analysis]) -> None:
    for name, analysis in shapes.items():
        if name == "all experts selected":
            continue
        bar: Any = FIGURES["longest_idle"](analysis).axes[-1]
        place = np.sort(np.log(bar.get_yticks()))
        inches = np.diff(place) / np.ptp(np.log(bar.get_ylim())) * bar.bbox.height / 200
        assert (inches > 0.1).all()
