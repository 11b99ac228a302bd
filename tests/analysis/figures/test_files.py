"""Every figure: its caption, its files, and what it makes of unusual traces.

Shape suffixes: none.
"""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from moe_probe.analysis import Analysis, Settings, analyse
from moe_probe.analysis.figures import FIGURES, KINDS, Absent, caption, figures, rendered, save
from moe_probe.analysis.figures.named_points import numbered
from moe_probe.analysis.figures.style import COLOURS, DASHES, DPI, MARKERS, new_figure, styled
from moe_probe.bundled import SAMPLE_TRACE
from moe_probe.trace import LayerSpec, Trace, TraceWriter, open_trace
from tests.analysis.figures.conftest import FEW

ONE_SUBJECT = {"specialization", "subject_tree", "log_odds"}
"""What a trace of one subject has not."""
ABSENT: dict[str, set[str]] = {
    "top-1, one layer, one subject": ONE_SUBJECT,
    "layers of three sizes": {"devices"},
    "nothing significant": set(),
    "five tokens": {"log_odds"},
    "all experts selected": {"log_odds", "longest_idle", "rate_burst"},
    "57 subjects": {"log_odds"},
    "60 layers of 256": {"log_odds"},
}
HOSTILE = [
    *("$\\frac{1}{0}$ & <b>bold</b>", "line\none\x00 \x1b[31m", "模型", "\u202etfel", "--> <!--"),
    "m" * 10_000,
]


def parts(figure: Any) -> list[Any]:
    return [*figure.axes, *figure.texts, *figure.legends]


def assert_nothing_is_cut(figure: Any) -> None:
    """Compare what is drawn with the figure's own box, at its resolution."""
    renderer: Any = FigureCanvasAgg(figure).get_renderer()
    for part in parts(figure):
        box = part.get_tightbbox(renderer)
        if box is not None:
            assert box.x0 > -3, part
            assert box.y0 > -3, part
            assert box.x1 < figure.bbox.x1 + 3, part
            assert box.y1 < figure.bbox.y1 + 3, part


@pytest.mark.parametrize("name", FIGURES)
def test_caption_says_how_it_was_counted(planted: Analysis, name: str) -> None:
    text = caption(FIGURES[name](planted))
    tokens = planted.layers["tokens"][0]
    effective = planted.layers["tokens_effective"].median()
    counted = (
        f"Counting rule unique, token order canonical, T = {tokens:,} tokens, worth "
        f"{effective:,.0f} independent ones (T_eff). By chance: "
    )
    assert counted in text
    assert len(text.split(counted)[1]) > 20


@pytest.mark.parametrize("name", FIGURES)
def test_files_are_the_same_each_time(planted: Analysis, name: str, tmp_path: Path) -> None:
    figure = FIGURES[name](planted)
    with matplotlib.rc_context({"axes.facecolor": "red", "lines.linewidth": 9}):
        again = FIGURES[name](planted)
    for kind in KINDS:
        first = rendered(figure, kind)
        # In whichever settings, and whatever was written before.
        with matplotlib.rc_context({"svg.hashsalt": None, "font.size": 30}):
            save(again, tmp_path / f"f.{kind}")
        assert (tmp_path / f"f.{kind}").read_bytes() == first
    assert b"Matplotlib v" not in first
    assert not re.search(rb"<dc:date>|20\d\d-\d\d-\d\d", first)
    ElementTree.fromstring(first.decode())


def test_png_has_the_pixels_of_the_canvas(planted: Analysis) -> None:
    """What was drawn is what the file has."""
    figure = FIGURES["relative_load"](planted)
    canvas = FigureCanvasAgg(figure)
    styled(canvas.draw)()
    with Image.open(BytesIO(rendered(figure, "png"))) as picture:
        assert picture.mode == "RGB"
        assert picture.info["dpi"] == pytest.approx((DPI, DPI), rel=1e-4)
        np.testing.assert_array_equal(
            np.asarray(picture), np.asarray(canvas.buffer_rgba())[..., :3]
        )


def test_nothing_else_is_written(planted: Analysis, tmp_path: Path) -> None:
    for name in ("a.pdf", "a"):
        with pytest.raises(ValueError, match="ends neither in"):
            save(FIGURES["quality"](planted), tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ABSENT)
def test_unusual_traces_are_drawn_whole(shapes: Mapping[str, Analysis], name: str) -> None:
    absent = set()
    for figure_name, figure in figures(shapes[name]):
        if isinstance(figure, str):
            absent.add(figure_name)
            continue
        assert_nothing_is_cut(figure)
        if name in ("five tokens", "60 layers of 256"):
            svg = rendered(figure, "svg")
            assert len(svg) < 300_000, figure_name
            assert not re.search(rb'(d|x|y)="[^"]*(nan|inf)', svg), figure_name
    assert absent == ABSENT[name]


def test_large_maps_are_small_files(shapes: Mapping[str, Analysis]) -> None:
    """One picture in each, not a path for each of 15,360 cells."""
    for name in ("relative_load", "longest_idle", "rate_burst", "sorted_load"):
        svg = rendered(FIGURES[name](shapes["60 layers of 256"]), "svg")
        assert svg.count(b"<image ") >= 1
        assert svg.count(b"<path") < 500
        assert len(svg) < 300_000


def test_a_trace_without_rows_has_what_counts_tell(counts_only: Analysis) -> None:
    found = dict(figures(counts_only))
    reasons = {name: text for name, text in found.items() if isinstance(text, str)}
    assert set(reasons) == {
        *("coverage", "rate_burst", "longest_idle", "repeats", "log_odds", "devices")
    }
    assert "no rows" in reasons["repeats"]
    for figure in found.values():
        if not isinstance(figure, str):
            assert_nothing_is_cut(figure)
            assert "T_eff" not in caption(figure).split("By chance")[0]


def test_where_nothing_counts_only_the_checks_are_drawn(
    new_trace: Callable[..., Trace],
) -> None:
    layers = [LayerSpec(layer=1, num_experts=4, top_k=1)]
    trace = new_trace(layers, [np.zeros((3, 1), np.uint8)], new_from=3)
    found = dict(figures(analyse(trace, rule="unique", **FEW)))
    assert not isinstance(found.pop("quality"), str)
    assert {str(reason).split(",")[0] for reason in found.values()} == {
        "no token counts under the rule unique"
    }


def test_names_of_a_trace_are_drawn_as_they_are(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    with TraceWriter(
        tmp_path / "trace", layers=[LayerSpec(layer=0, num_experts=8, top_k=2)]
    ) as writer:
        for number in range(31 * len(HOSTILE)):
            ids = rng.random((10, 8)).argsort(axis=1)[:, :2]
            subject = HOSTILE[number % len(HOSTILE)]
            writer.add([ids], subject=subject, area=subject[::-1], doc_id=number)
    analysis = analyse(open_trace(tmp_path / "trace"), **FEW)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = dict(figures(analysis))
        for figure in found.values():
            assert not isinstance(figure, str)
            ElementTree.fromstring(rendered(figure, "svg").decode())
        # Measuring names that the font lacks, outside of the common style, does warn.
        warnings.filterwarnings("ignore", "Glyph")
        for figure in found.values():
            assert_nothing_is_cut(figure)
    labels = [
        text.get_text() for text in FIGURES["subject_tree"](analysis).axes[0].get_yticklabels()
    ]
    assert "$\\frac{1}{0}$ & <b>bold</b>" in labels
    assert "line?one? ?[31m" in labels
    assert "m" * 39 + "…" in labels


@pytest.mark.parametrize("subjects", [[""], ["", "law"]])
def test_text_without_subject_and_task_is_not_taken_for_all_text(
    tmp_path: Path, subjects: list[str]
) -> None:
    rng = np.random.default_rng(0)
    with TraceWriter(tmp_path / "t", layers=[LayerSpec(layer=0, num_experts=8, top_k=2)]) as writer:
        for number in range(6):
            ids_TK = np.argsort(rng.random((20, 8)), axis=1)[:, :2]
            writer.add([ids_TK], subject=subjects[number % len(subjects)], doc_id=number)
    found = analyse(tmp_path / "t", **FEW)
    for name in ("repeats", "devices"):
        assert FIGURES[name](found) is not None
    pooled = found.repeats[found.repeats["subject"] == ""]
    assert pooled["lag"].is_unique
    # Of each document of 20 tokens 19 pairs at lag 1.
    assert pooled.loc[pooled["lag"] == 1, "pairs"].tolist() == [6 * 19]
    placed = found.table("placement")
    assert not placed.duplicated(["devices", "fit", "fit_subject", "subject"]).any()


def test_the_bundled_example() -> None:
    analysis = analyse(SAMPLE_TRACE, **FEW)
    found = dict(figures(analysis))
    assert found.pop("log_odds") == "no subject beside others has 30 documents"
    for figure in found.values():
        assert_nothing_is_cut(figure)
    assert FIGURES["subject_tree"](analysis).axes[0].get_ylim() == (56.5, -0.5)


def test_another_rule_and_order_are_named(planted: Analysis) -> None:
    trace = planted.sums.trace
    analysis = analyse(trace, rule="raw", order="shuffle-docs:3", **FEW)
    text = caption(FIGURES["longest_idle"](analysis))
    assert "Counting rule raw, token order shuffle-docs:3" in text
    assert FIGURES["longest_idle"](analysis).axes[0].get_title("left") == "order: shuffle-docs:3"
    assert Settings().order != analysis.sums.settings.order


def test_what_is_not_known_or_not_asked_for_is_not_named(
    planted: Analysis, counts_only: Analysis
) -> None:
    for name in ("sorted_load", "imbalance", "devices"):
        if name != "devices":  # Experts of this trace do not split over devices.
            assert "T_eff" not in caption(FIGURES[name](counts_only))
        assert "T_eff" in caption(FIGURES[name](planted)).split("By chance")[1]
    drawn = FIGURES["imbalance"](counts_only).axes[0].get_legend_handles_labels()[1]
    assert "by chance at T_eff" not in drawn
    once = analyse(planted.sums.trace, **{**FEW, "shuffles": 0})
    for name in ("coverage", "rate_burst"):
        with pytest.raises(Absent, match="documents were not shuffled"):
            FIGURES[name](once)
    assert "left map" not in caption(FIGURES["longest_idle"](once))


def test_runs_of_unused_experts_are_those_of_the_order(planted: Analysis) -> None:
    local = analyse(planted.sums.trace, order="request-local", **FEW)
    never = local.experts[local.experts["count"] == 0]
    longest = int(planted.sums.trace.sequences["num_tokens"].to_numpy().max())
    assert never["longest_idle"].tolist() == [longest] * 3
    assert "the longest document or prefix" in caption(FIGURES["longest_idle"](local))
    assert "the longest document" not in caption(FIGURES["longest_idle"](planted))


def test_names_without_room_are_not_drawn_over_others() -> None:
    figure = new_figure(5, 3)
    axes = figure.add_subplot()
    axes.set(xlim=(0, 1), ylim=(0, 1))
    x = [0.5 + 0.001 * number for number in range(6)]
    numbered(axes, x, [0.5] * 6, [f"n{number}" for number in range(6)])
    rendered(figure, "png")
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) == 6
    for number, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:number])


def test_reasons_are_raised_by_a_single_figure(shapes: Mapping[str, Analysis]) -> None:
    for name in ONE_SUBJECT:
        with pytest.raises(Absent, match="all tokens are of one subject"):
            FIGURES[name](shapes["top-1, one layer, one subject"])


def test_matplotlib_is_imported_when_something_is_drawn() -> None:
    code = "import sys; import moe_probe.analysis.figures; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_no_two_lines_differ_by_colour_alone() -> None:
    assert len(COLOURS) == len({*COLOURS}) == len({*DASHES}) == len({*MARKERS})


@pytest.mark.parametrize("name", FIGURES)
def test_places_have_no_digits_of_the_solver(planted: Analysis, name: str) -> None:
    """They depend on where objects lie in memory, and names in an SVG depend on them."""
    for axes in FIGURES[name](planted).axes:
        place = axes.get_position(original=True).get_points().ravel()
        np.testing.assert_allclose(place, np.round(place, 6), rtol=0, atol=1e-15)
        assert axes.get_in_layout()
