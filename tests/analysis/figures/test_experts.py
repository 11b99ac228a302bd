"""Figures of single experts, subjects and repeats against numbers computed from the tables.

Shape suffixes: S subjects.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from scipy.cluster.hierarchy import cophenet

from moe_probe.analysis import Analysis
from moe_probe.analysis.figures import FIGURES, caption
from tests.analysis.figures.conftest import BURSTY, IDLE, SUBJECT_OF


def legend(figure: Any) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_dots_are_the_experts(planted: Analysis) -> None:
    figure: Any = FIGURES["rate_burst"](planted)
    dots = figure.axes[0].collections[-1]
    known = planted.experts.dropna(subset=["rate_deficit", "burstiness"])
    found = sorted(map(tuple, np.column_stack([dots.get_offsets(), dots.get_array()]).tolist()))
    expected = known[["rate_deficit", "burstiness", "layer"]].to_numpy().tolist()
    assert found == sorted(map(tuple, expected))
    assert dots.get_rasterized()


def test_planted_idle_and_bursty_experts_are_named(planted: Analysis) -> None:
    figure: Any = FIGURES["rate_burst"](planted)
    named = [text for text in legend(figure) if "expert" in text]
    assert {f"layer {layer}, expert {IDLE}" for layer in (3, 4, 9)} <= {
        text.split("  ")[1] for text in named
    }
    assert sum(f"expert {BURSTY}" in text for text in named) == 3
    # Experts never selected lie on each other and share one label.
    assert "1, 2, 3" in [text.get_text() for text in figure.axes[0].texts]


def test_numbers_of_the_volcano_are_the_planted_pairs(planted: Analysis) -> None:
    figure: Any = FIGURES["log_odds"](planted)
    axes = figure.axes[0]
    known = planted.subjects.dropna(subset=["q_value"])
    is_found = known["q_value"] < 0.05
    lines = {line.get_label().split(" (")[0]: line for line in axes.get_lines()}
    for label, rows in {
        "not significant": known[~is_found],
        "selected less, q < 0.05": known[is_found & (known["log_odds"] < 0)],
        "selected more, q < 0.05": known[is_found & (known["log_odds"] > 0)],
    }.items():
        x, y = lines[label].get_data()
        np.testing.assert_allclose(x, rows["log_odds"])
        np.testing.assert_allclose(y, [-math.log10(max(q, 1e-300)) for q in rows["q_value"]])
        assert lines[label].get_label().endswith(f"({len(rows):,})")
    planted_pairs = {
        f"layer {layer}, expert {expert}: {subject}"
        for layer in (3, 4, 9)
        for expert, subject in SUBJECT_OF.items()
    }
    assert planted_pairs <= {text.split("  ")[1] for text in legend(figure) if "expert" in text}
    assert f"{int(is_found.sum())} of {len(known)} pairs have q < 0.05" in caption(figure)


def test_volcano_without_findings_says_so(shapes: Mapping[str, Analysis]) -> None:
    figure: Any = FIGURES["log_odds"](shapes["nothing significant"])
    assert "0 of 288 pairs have q < 0.05. Counting rule" in caption(figure)
    assert not [text for text in legend(figure) if "expert" in text]
    assert figure.axes[0].get_ylim()[1] > -math.log10(0.05)


def test_many_dots_are_thinned_to_what_can_be_seen() -> None:
    from moe_probe.analysis.figures.log_odds import _thinned

    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 300_000))
    few_x, few_y = _thinned(x, y)
    assert len(few_x) < 200_000
    assert set(zip(few_x, few_y, strict=True)) <= set(zip(x, y, strict=True))
    # Every dot left out has one within a cell's width of it.
    cells = [np.round((v - v.min()) / np.ptp(v) * 1000) for v in (x, y)]
    kept = [
        np.round((f - v.min()) / np.ptp(v) * 1000)
        for f, v in zip((few_x, few_y), (x, y), strict=True)
    ]
    assert set(zip(*cells, strict=True)) == set(zip(*kept, strict=True))


def test_tree_joins_subjects_at_their_mean_distance(planted: Analysis) -> None:
    figure: Any = FIGURES["subject_tree"](planted)
    left, right = figure.axes[:2]
    names = [text.get_text() for text in left.get_yticklabels()]
    assert sorted(names) == ["s0", "s1", "s2"]
    pairs = planted.table("divergence").groupby(["subject", "other"])["divergence_bits"].mean()
    shown = right.images[0].get_array()
    for row, subject in enumerate(names):
        for column, other in enumerate(names):
            pair = tuple(sorted((subject, other)))
            expected = pairs[pair] if row != column else 0
            assert shown[row, column] == pytest.approx(expected)
    joins = sorted(segment[:, 0].max() for segment in left.collections[0].get_segments())
    root = np.sqrt(np.sort(pairs.to_numpy()))
    # Of three subjects the nearest two join first, and both with the third in the mean.
    assert joins[0] == pytest.approx(root[0])
    assert joins[1] == pytest.approx(root[1:].mean())
    noise = planted.table("divergence").groupby(["subject", "other"])["divergence_null_bits"].mean()
    assert left.get_lines()[0].get_xdata()[0] == pytest.approx(math.sqrt(noise.median()))


def test_leaves_of_a_large_tree_stand_at_their_rows(shapes: Mapping[str, Analysis]) -> None:
    from moe_probe.analysis.metrics.clustering import average_linkage
    from moe_probe.analysis.metrics.subject_distance import layer_matrices, mean_over_layers

    analysis = shapes["57 subjects"]
    left = FIGURES["subject_tree"](analysis).axes[0]
    segments: Any = left.collections[0]
    ends = np.concatenate([s[[0, 3], 1][s[[0, 3], 0] == 0] for s in segments.get_segments()])
    assert sorted(ends.tolist()) == list(range(57))
    names = [text.get_text() for text in left.get_yticklabels()]
    subjects = analysis.sums.subjects
    table = analysis.table("divergence")
    distance = np.sqrt(mean_over_layers(layer_matrices(table, analysis.sums.specs, subjects)))
    tree = average_linkage(distance)
    assert names == [subjects[leaf] for leaf in tree.order_S]
    tops = sorted(float(segment[1, 0]) for segment in segments.get_segments())
    np.testing.assert_allclose(tops, np.unique(cophenet(tree.links)))


def test_repeats_have_both_nulls(planted: Analysis) -> None:
    overlap, first, distant = FIGURES["repeats"](planted).axes
    pooled = planted.repeats[planted.repeats["subject"] == ""]
    near = pooled[pooled["lag"] == 1]
    experts = planted.experts.set_index("layer")
    slots = planted.table("slots")
    own, own_first = [], []
    for layer in (3, 4, 9):
        frequency = experts.loc[[layer], "frequency"]
        own.append(float(np.square(frequency.to_numpy(np.float64)).sum()) / 2)
        leads = slots[(slots["layer"] == layer) & (slots["slot"] == 1)]["count"].to_numpy()
        own_first.append(float(np.square(leads / leads.sum()).sum()))
    expected: dict[str, Any] = {
        "all pairs of tokens": (near["overlap_ratio"], near["first_choice"]),
        "independent tokens, own rates": (own, own_first),
        "independent tokens, fair rate": ([2 / 16] * 3, [1 / 16] * 3),
    }
    for axes, place in ((overlap, 0), (first, 1)):
        drawn: Any = {line.get_label(): line for line in axes.get_lines()}
        # Tokens of this trace have no ids.
        assert set(drawn) == set(expected)
        for label, values in expected.items():
            np.testing.assert_allclose(drawn[label].get_ydata(), values[place])
    median = pooled.groupby("lag")["overlap_ratio"].median()
    line: Any = distant.get_lines()[0]
    assert line.get_xdata().tolist() == [1, 2, 4, 8, 16, 32, 64][: len(median)]
    np.testing.assert_allclose(line.get_ydata(), median)
