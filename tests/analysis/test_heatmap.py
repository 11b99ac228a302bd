"""The heat map shows the relative load, marks idle experts, and says how it was counted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_hex

from moe_probe.analysis.accumulators.counts import LayerCounts
from moe_probe.analysis.figures.heatmap import caption, load_heatmap, log2_load, to_png
from moe_probe.analysis.rules import Rule
from moe_probe.trace import LayerSpec


def layer(index: int, counts: list[int], top_k: int = 1) -> LayerCounts:
    spec = LayerSpec(layer=index, num_experts=len(counts), top_k=top_k)
    return LayerCounts(spec, np.array(counts, np.int64), sum(counts) // top_k)


LAYERS = [layer(3, [40, 20, 20, 0]), layer(7, [40, 40])]


def axes_of(layers: list[LayerCounts]) -> Any:
    return load_heatmap(layers, rule=Rule.RAW).axes[0]


def test_values_are_log2_of_relative_load() -> None:
    expected = [[1, 0, 0, -np.inf], [0, 0, np.nan, np.nan]]
    assert np.array_equal(log2_load(LAYERS), expected, equal_nan=True)


def test_scale_is_centred_and_clipped() -> None:
    image = axes_of([layer(0, [1000, *[1] * 99])]).images[0]
    assert image.get_clim() == (-3, 3)
    assert (image.get_array().min(), image.get_array().max()) == (-3, 3)


def test_idle_experts_are_marked_and_absent_ones_are_not() -> None:
    (marks,) = axes_of(LAYERS).collections
    assert marks.get_offsets().tolist() == [[3, 0]]


def test_idle_experts_have_a_colour_of_their_own() -> None:
    image = axes_of(LAYERS).images[0]
    colours = image.to_rgba(image.get_array())
    assert to_hex(colours[0, 3]) == "#ffd400"
    assert colours[1, 3, 3] == 0  # absent: the grey behind the map shows
    assert to_hex(colours[0, 1]) == to_hex(colours[1, 1]) == to_hex(image.cmap(0.5))


def test_layers_carry_their_own_index() -> None:
    labels = [text.get_text() for text in axes_of(LAYERS).get_yticklabels()]
    assert labels == ["3", "7"]
    many = [layer(3 + i, [1, 1]) for i in range(90)]
    assert [text.get_text() for text in axes_of(many).get_yticklabels()][:3] == ["3", "6", "9"]


def test_caption_names_rule_and_tokens() -> None:
    text = caption(LAYERS, rule=Rule.UNIQUE)
    assert "unique (every distinct context once); T = 80 tokens" in text
    assert "Yellow with a cross: never selected." in text
    assert "Grey: no such expert." in text
    assert "cross" not in caption([layer(0, [1, 1])], rule=Rule.RAW)


@pytest.mark.parametrize("layers", [LAYERS, [layer(0, [0, 0])], [layer(1, [5])]])
def test_png_is_the_same_each_time(layers: list[LayerCounts]) -> None:
    png = to_png(load_heatmap(layers, rule=Rule.RAW))
    assert png.startswith(b"\x89PNG")
    assert png == to_png(load_heatmap(layers, rule=Rule.RAW))
