"""What a notebook shows of an analysis: its findings, its loads as pixels, and no one's markup."""

from __future__ import annotations

import re
from base64 import b64decode
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from moe_probe.analysis import Analysis, analyse
from moe_probe.analysis.results import TABLES
from moe_probe.trace import LayerSpec, TraceWriter, open_trace

HOSTILE = "\"'><script>alert(1)</script><img src=x onerror=alert(2)>&\x1b[31m\nnew"
YELLOW = (255, 212, 0, 255)


def analysis_of(path: Path, *, status: str = "complete", **run: Any) -> Analysis:
    """Record 8 documents in layers of 8 and of 5 experts, the last of which is never selected."""
    layers = [
        LayerSpec(layer=3, num_experts=8, top_k=2),
        LayerSpec(layer=7, num_experts=5, top_k=1),
    ]
    rng = np.random.default_rng(2)
    writer = TraceWriter(path, layers=layers, run=run)
    for doc_id in range(8):
        score = [rng.random((50, spec.num_experts - 1)) for spec in layers]
        score[0][:, 0] -= 0.6
        ids = [s.argsort(axis=1)[:, : spec.top_k] for s, spec in zip(score, layers, strict=True)]
        writer.add(ids, subject=f"{HOSTILE}{doc_id % 2}", doc_id=doc_id)
    writer.close(status)
    return analyse(open_trace(path), windows=(50,), shuffles=2, replicates=20, permutations=5)


class Page(HTMLParser):
    """The tags, attributes and text of some HTML; an end tag that fits none is an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.attributes: dict[str, str] = {}
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name: value or "" for name, value in attrs}
        if tag not in ("img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Analysis:
    path = tmp_path_factory.mktemp("shown") / "trace"
    return analysis_of(path, model=HOSTILE, task=HOSTILE)


def test_findings_and_caption_are_those_of_the_analysis(found: Analysis) -> None:
    page = Page(found._repr_html_())
    for text in (found.headline.uneven, found.headline.least_used, found.headline.idle):
        assert "".join(c if c.isprintable() else "?" for c in text) in page.text
    assert found.caption in page.text
    assert page.tags.count("li") == 3


def test_names_from_a_trace_stay_text(found: Analysis) -> None:
    html = found._repr_html_()
    page = Page(html)
    assert set(page.tags) == {"div", "p", "strong", "br", "ul", "li", "img", "small", "code"}
    assert set(page.attributes) == {"src", "alt", "style"}
    assert "<script>alert(1)</script><img src=x onerror=alert(2)>&?[31m?new" in page.text
    assert html.isprintable()
    assert not re.search(r"https?:|url\(", html)


def test_pixels_are_the_relative_loads(found: Analysis) -> None:
    source = Page(found._repr_html_()).attributes["src"]
    image = imread(BytesIO(b64decode(source.removeprefix("data:image/png;base64,"))))
    pixels_LMC = (image * 255).round().astype(int)
    assert pixels_LMC.shape == (2, 8, 4)
    load = found.experts.set_index(["layer", "expert"])["relative_load"]
    for row, (layer, num_experts) in enumerate(((3, 8), (7, 5))):
        for expert in range(8):
            red, _, blue, alpha = pixel = tuple(pixels_LMC[row, expert].tolist())
            if expert >= num_experts:
                assert alpha == 0
            elif expert == num_experts - 1:
                assert pixel == YELLOW
            else:
                assert (red > blue, alpha) == (load[layer, expert] > 1, 255)
    assert load[3, 0] == load[3].max() > 1.5


def test_sizes_are_of_tables_that_were_made(tmp_path: Path) -> None:
    found = analysis_of(tmp_path / "trace", model="m")
    assert set(found.made) == set()
    text = Page(found._repr_html_()).text
    assert "experts (13 × " in text
    assert all(name in text for name in TABLES)
    assert "repeats (" not in text
    rows, columns = found.repeats.shape
    assert f"repeats ({rows} × {columns})" in Page(found._repr_html_()).text


def test_findings_are_withheld_while_a_check_fails(tmp_path: Path) -> None:
    run = {"model": "m", "model_facts": {"num_moe_layers": 5}}
    found = analysis_of(tmp_path / "trace", status="interrupted", **run)
    page = Page(found._repr_html_())
    assert "This recording is not complete (status: interrupted)." in page.text
    assert "Failed checks: Q7. Findings are withheld until they pass." in page.text
    assert page.tags.count("li") == 1
    assert "Q7 " in page.text
    assert "random routing gives" not in page.text


def test_nothing_counted_has_no_picture(tmp_path: Path) -> None:
    with TraceWriter(
        tmp_path / "trace", layers=[LayerSpec(layer=0, num_experts=4, top_k=2)]
    ) as writer:
        writer.add([np.array([[0, 1], [2, 1]])], new_from=-1)
    page = Page(analyse(tmp_path / "trace", rule="unique")._repr_html_())
    assert "No token counts under the rule unique" in page.text
    assert "img" not in page.tags
