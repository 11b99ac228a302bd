"""The page of the bundled example: 57 subjects, a real model, every view."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from tests.analysis.report.page.browser import Opened
from tests.analysis.report.page.conftest import report_of
from tests.evaluation.record_helpers import record

Open = Callable[..., Opened]
MAP = "relative-load"


@pytest.fixture(scope="module")
def bundled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the report of one question of each subject, without examples."""
    trace = tmp_path_factory.mktemp("bundled") / "trace"
    record("tiny-moe", ["mmlu_sample"], trace, num_fewshot=0, limit=1, batch_size="16")
    return report_of(trace)


def test_every_view_is_drawn(open_page: Open, bundled: Path) -> None:
    page = open_page(bundled)
    page.show_tables()
    views = page.page.locator(".view")
    drawn = page.page.locator(".view[data-drawn]")
    absent = page.page.locator(".view .absent").all_inner_texts()
    assert drawn.count() + len(absent) == views.count() > 10
    assert all(reason.startswith("Not shown: ") for reason in absent)
    assert page.page.locator(".view[data-drawn] table tbody tr").count() > drawn.count()


def test_subjects_have_the_counts_of_the_table(open_page: Open, bundled: Path) -> None:
    page, subjects = open_page(bundled), pd.read_csv(bundled / "tables/subjects.csv")
    counts = page.page.evaluate(
        "() => { const { meta, counts } = MoeProbe.page.data;"
        "return meta.subjects.map((subject, s) => [subject.name, Array.from(counts.subject(s))]); }"
    )
    assert len(counts) == 57
    wanted = subjects.sort_values(["layer", "expert"]).groupby("subject")["count"]
    assert dict(counts) == {name: values.tolist() for name, values in wanted}


def test_one_question_is_too_little_text_for_colours(open_page: Open, bundled: Path) -> None:
    page = open_page(bundled)
    page.page.locator(f"#{MAP}").get_by_label("Text", exact=True).select_option(label="astronomy")
    page.page.locator(f"#{MAP} .plot").press("ArrowDown")
    page.wait()
    assert "few tokens" in page.text(f"#{MAP} [role=status]")
    assert "subject astronomy" in page.text(f"#{MAP} .about")
