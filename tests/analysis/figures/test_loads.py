"""Figures of loads: what they draw against numbers computed from the tables.

Shape suffixes: N experts of a layer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import beta, norm

from moe_probe.analysis import Analysis, analyse
from moe_probe.analysis.figures import FIGURES, Absent, caption
from moe_probe.trace import LayerSpec, TraceWriter
from tests.analysis.figures.conftest import FEW


def lines(axes: Any) -> dict[str, Any]:
    return {line.get_label(): line for line in axes.get_lines()}


def ends(axes: Any, number: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return the lower and upper end of a band at each of its points."""
    (path,) = axes.collections[number].get_paths()
    table = pd.DataFrame(path.vertices, columns=["x", "y"]).groupby("x")["y"]
    return table.min().to_numpy(), table.max().to_numpy()


def test_lines_are_the_sorted_relative_loads(planted: Analysis) -> None:
    axes: Any = FIGURES["sorted_load"](planted).axes[0]
    for layer, rows in planted.experts.groupby("layer"):
        line = lines(axes)[f"layer {layer}"]
        assert line.get_xdata().tolist() == list(range(1, 17))
        expected = sorted(rows["relative_load"], reverse=True)
        np.testing.assert_allclose(line.get_ydata(), expected)
    assert axes.get_yscale() == "log"
    assert "3 experts were never selected" in caption(axes.figure)


def test_band_of_even_routing_is_the_closed_form(planted: Analysis) -> None:
    axes: Any = FIGURES["sorted_load"](planted).axes[0]
    effective = float(planted.layers["tokens_effective"].median())
    rank_N = np.arange(1, 17)
    quantile_QN = norm.ppf([beta.ppf(level, 17 - rank_N, rank_N) for level in (0.025, 0.5, 0.975)])
    variance_N = ((quantile_QN[2] - quantile_QN[0]) / 2 / norm.ppf(0.975)) ** 2
    kept_N = np.sqrt(1 - 1 / 16 / variance_N)
    sd = math.sqrt((16 - 2) / (2 * effective) * 16 / 15)
    mean = effective * 2 / 16
    skew, half = (1 - 2 * 2 / 16) / math.sqrt(mean * (1 - 2 / 16)), 0.5 / mean
    for found_N, quantile_N, out in zip(
        ends(axes), quantile_QN[[0, 2]], (-half, half), strict=True
    ):
        normal_N = quantile_QN[1] + (quantile_N - quantile_QN[1]) * kept_N
        expected = 1 + sd * (normal_N + skew / 6 * (normal_N**2 - 1)) + out
        np.testing.assert_allclose(found_N, expected, rtol=1e-6)


def test_each_shape_of_layer_has_a_band_and_many_layers_a_scale(
    shapes: Mapping[str, Analysis],
) -> None:
    axes: Any = FIGURES["sorted_load"](shapes["layers of three sizes"]).axes[0]
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels[:3] == [f"even routing, N = {n}, k = 2" for n in (8, 5, 12)]
    figure: Any = FIGURES["sorted_load"](shapes["60 layers of 256"])
    assert figure.axes[1].get_ylabel() == "layer"
    assert figure.axes[1].get_ylim() == (3, 62)
    assert sum(len(line.get_xdata()) == 256 for line in figure.axes[0].get_lines()) == 60 + 2


@pytest.mark.parametrize(("panel", "name"), [(0, "max_vio"), (1, "effective_experts"), (2, "cv")])
def test_profile_has_index_nulls_noise_and_other_rules(
    planted: Analysis, panel: int, name: str
) -> None:
    figure: Any = FIGURES["imbalance"](planted)
    axes, layers = figure.axes[panel], planted.layers
    drawn = lines(axes)
    assert drawn["unique"].get_xdata().tolist() == [3, 4, 9]
    np.testing.assert_allclose(drawn["unique"].get_ydata(), layers[name])
    np.testing.assert_allclose(drawn["by chance"].get_ydata(), layers[f"{name}_null"])
    noise = 1.96 * layers[f"{name}_noise"]
    low, high = ends(axes)
    np.testing.assert_allclose(low, np.maximum(layers[name] - noise, 0))
    np.testing.assert_allclose(high, layers[name] + noise)
    deff, tokens = layers["deff_mean"], layers["tokens"]
    if name == "cv":
        worn = np.sqrt((16 - 2) / (2 * (tokens / deff).round()))
        np.testing.assert_allclose(drawn["by chance at T_eff"].get_ydata(), worn)
    else:
        rules = planted.table("rules")
        for rule in ("question", "decision"):
            values = rules.loc[rules["rule"] == rule, name]
            np.testing.assert_allclose(drawn[rule].get_ydata(), values)


def test_bars_add_up_to_the_imbalance_within_subjects(planted: Analysis) -> None:
    figure: Any = FIGURES["specialization"](planted)
    above, below = figure.axes
    unfair, special = above.containers
    heights = [[bar.get_height() for bar in bars] for bars in (unfair, special)]
    tops = [bar.get_y() + bar.get_height() for bar in special]
    counts_SN = [planted.sums.by_group(layer)[0] for layer in (3, 4, 9)]
    for number, counts in enumerate(counts_SN):
        share, pooled = counts / counts.sum(axis=1, keepdims=True), counts.sum(axis=0)
        q = pooled[pooled > 0] / pooled.sum()
        assert heights[0][number] == pytest.approx(4 + (q * np.log2(q)).sum())
        log = np.log2(share * 16, where=share > 0, out=np.zeros(share.shape))
        within = (counts.sum(axis=1) / counts.sum()) @ (share * log).sum(axis=1)
        assert tops[number] == pytest.approx(within)
    assert {bar.get_hatch() for bar in special} == {"////"}
    (line,) = [line for line in below.get_lines() if line.get_label() == "I(expert; subject)"]
    np.testing.assert_allclose(line.get_ydata(), planted.specialization["documents_bits"])
    spans = [segment[:, 1].tolist() for segment in below.collections[0].get_segments()]
    np.testing.assert_allclose(spans, planted.specialization[["null", "null_95"]])


def test_coverage_is_of_the_median_layer_between_the_extreme_ones(planted: Analysis) -> None:
    figure: Any = FIGURES["coverage"](planted)
    left, right = figure.axes
    table = planted.table("coverage")
    seen = table.pivot(index="tokens", columns="layer", values="seen")
    drawn = lines(left)
    line = drawn["seen, documents shuffled"]
    assert line.get_xdata().tolist() == seen.index.tolist()
    np.testing.assert_allclose(line.get_ydata(), seen.median(axis=1) / 16 * 100)
    low, high = ends(left)
    np.testing.assert_allclose(low, seen.min(axis=1) / 16 * 100)
    np.testing.assert_allclose(high, seen.max(axis=1) / 16 * 100)
    fair = 100 * (1 - (1 - 1 / 8) ** seen.index.to_numpy())
    np.testing.assert_allclose(drawn["independent tokens, fair rate"].get_ydata(), fair)
    missing: Any = right.get_lines()[0]
    np.testing.assert_allclose(missing.get_ydata(), (16 - seen).median(axis=1))


def test_balance_is_beside_what_chance_gives(planted: Analysis) -> None:
    axes: Any = FIGURES["devices"](planted).axes[0]
    table, drawn = planted.table("devices"), lines(axes)
    assert table["devices"].tolist() == [2, 4, 8]
    np.testing.assert_allclose(
        drawn["SGLang utilisation (mean)"].get_ydata(), table["sglang_utilisation"]
    )
    np.testing.assert_allclose(ends(axes), table[["vllm_min", "vllm_p90"]].T)
    chance: Any = drawn["by chance (mean)"].get_ydata()
    np.testing.assert_allclose(chance, table["sglang_utilisation_null"])
    effective = planted.layers["tokens_effective"].round()
    # The larger of two standard normals is 1 / sqrt(pi) in the mean.
    vio = np.sqrt((16 - 2) / (15 * 2 * effective) * 2) / math.sqrt(math.pi)
    assert chance[0] == pytest.approx((1 / (1 + vio)).mean(), abs=0.003)


def test_subjects_without_counted_tokens_are_blank_and_in_no_mean(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    layers = [LayerSpec(layer=0, num_experts=16, top_k=2)]
    with TraceWriter(tmp_path / "t", layers=layers) as writer:
        for number, subject in enumerate(["a", "b", "c"] * 4):
            ids_TK = np.argsort(rng.random((20, 16)), axis=1)[:, :2]
            # All of c is few-shot prefix.
            ends: dict[str, Any] = {
                "prefix_end": 20 * (subject == "c"),
                "question_end": 20,
                "cue_end": 20,
            }
            writer.add([ids_TK], subject=subject, doc_id=number, choice_end=20, **ends)
    found = analyse(tmp_path / "t", rule="question", **FEW)
    said = caption(FIGURES["devices"](found))
    pairs = found.table("placement").query("devices == 8 and fit == 'subject'")
    a_of_b = pairs.query("subject != fit_subject and balancedness == balancedness")
    assert len(a_of_b) == 2
    assert f"{a_of_b['balancedness'].mean():.2f} for another one" in said
    assert "White: no token of the subject counts." in said
    assert "nan" not in said


def test_balance_under_placements_for_others_is_that_of_the_table(planted: Analysis) -> None:
    right: Any = FIGURES["devices"](planted).axes[1]
    table = planted.table("placement")
    table = table[(table["devices"] == 8) & (table["subject"] != "")]
    drawn = np.asarray(right.images[0].get_array())
    labels = [text.get_text() for text in right.get_yticklabels()]
    subjects = labels[2:]
    assert labels[:2] == ["contiguous", "other subjects"]
    assert sorted(subjects) == sorted(planted.sums.subjects)
    for row, label in enumerate(labels):
        fits = table["fit"] == label if row < 2 else table["fit_subject"] == label
        wanted = table[fits].set_index("subject")["balancedness"].reindex(subjects)
        np.testing.assert_allclose(drawn[row], wanted)


def test_one_subject_has_no_placement_for_others(shapes: Mapping[str, Analysis]) -> None:
    assert len(FIGURES["devices"](shapes["top-1, one layer, one subject"]).axes) == 1


def test_experts_that_do_not_split_over_devices_have_no_balance(
    shapes: Mapping[str, Analysis],
) -> None:
    with pytest.raises(Absent, match="split evenly over devices: 5, 8, 12"):
        FIGURES["devices"](shapes["layers of three sizes"])
