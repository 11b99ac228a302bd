"""What the page says of how its numbers were counted, where text is missing, unnamed or repeated.

Shape suffixes: K slots.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from moe_probe.analysis import analyse
from moe_probe.analysis.reading.rules import Rule
from moe_probe.analysis.report import write_report
from moe_probe.analysis.settings import Settings
from moe_probe.trace import LayerSpec, TraceWriter, open_trace
from tests.analysis.report.page.browser import Opened
from tests.analysis.report.page.conftest import report_of
from tests.analysis.report.page.views import choose, read, shown

LAYERS = [
    LayerSpec(layer=1, num_experts=8, top_k=2, empty_slots=True),
    LayerSpec(layer=2, num_experts=8, top_k=2, empty_slots=True),
]
NEVER = 7
# In JavaScript's order of texts the second area comes first.
GROUPS = [("", "", "\uff61"), ("t", "a", "\U0001f600"), ("t", "b", "")]
Open = Callable[..., Opened]


@pytest.fixture(scope="module")
def question(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report by the rule `question` of three groups: one unnamed, the last all few-shot prefix.

    The first group leaves half of its second slots empty, every fifth document ran twice, and in
    layer 2 no slot is filled.
    """
    folder, rng = tmp_path_factory.mktemp("question"), np.random.default_rng(0)
    with TraceWriter(folder / "trace", layers=LAYERS) as writer:
        for number in range(60):
            group = number % 3
            task, subject, area = GROUPS[group]
            ids_TK = np.argsort(rng.random((30, NEVER)), axis=1)[:, :2]
            if group == 0:
                ids_TK[::2, 1] = -1
            writer.add(
                [ids_TK, np.full_like(ids_TK, -1)],
                task=task, subject=subject, area=area, doc_id=number,
                prefix_end=30 if group == 2 else 4, question_end=30, cue_end=30, choice_end=30,
                multiplicity=1 + (number % 5 == 0),
            )  # fmt: skip
    settings = Settings(
        rule=Rule.QUESTION, windows=(5,), shuffles=2, replicates=10, permutations=10
    )
    write_report(open_trace(folder / "trace"), folder / "report", settings, figure_kinds=())
    return folder / "report"


def test_another_rule_has_a_caption_of_its_own(question: Path, open_page: Open) -> None:
    page = open_page(question)
    whole = page.text("#relative-load figcaption")
    choose(page, "relative-load", "Text", "rule:raw")
    raw = analyse(question.parent / "trace", rule="raw", shuffles=0, replicates=2, permutations=2)
    tokens = int(raw.layers["tokens"].iloc[0])
    wanted = f"counting rule raw instead of the report's question, T = {tokens:,} tokens"
    assert wanted in page.text("#relative-load figcaption")
    page.page.locator("#relative-load").get_by_role("button", name="Show as table").click()
    said = page.text("#relative-load table caption")
    assert wanted in said
    assert "counting rule question" not in said
    assert set(shown(page, "relative-load")["tokens"].astype(int)) == {tokens}
    choose(page, "relative-load", "Text", "all")
    assert page.text("#relative-load figcaption") == whole
    assert "counting rule question" in page.text("#relative-load table caption")


def test_rules_that_count_more_tokens_borrow_no_design_effect(
    question: Path, open_page: Open
) -> None:
    """Prefixes and repeated runs are no more documents: their intervals would be too narrow."""
    page = open_page(question)
    for rule, is_known in (("raw", False), ("unique", False), ("decision", True)):
        choose(page, "relative-load", "Text", f"rule:{rule}")
        found = shown(page, "relative-load").astype({"layer": int})
        first = found[found["layer"] == 1]
        assert first["relative_load"].notna().all()
        assert first[["ci_low", "ci_high"]].notna().all(axis=None) == is_known
        page.page.evaluate("MoeProbe.page.select(0, 3)")
        page.wait()
        said = page.text("#relative-load .status")
        assert ("this rule counts more tokens than the report's" in said) != is_known
        assert ("95% interval – to –" in said) != is_known
        assert ("fair routing: – to –" in said) != is_known


def test_never_used_experts_have_the_scale_of_their_own_text(
    question: Path, open_page: Open
) -> None:
    page = open_page(question)
    median, eighths = page.page.evaluate(
        "expert => { const {array, N, layers} = MoeProbe.page.data;"
        "return [Array.from(array('intervals.median').values.slice(0, 6)),"
        "array('intervals.expert').values[layers.length * N + expert]]; }",
        NEVER,
    )
    for subject in (0, 1):
        choose(page, "relative-load", "Text", f"subject:{subject}")
        table: Any = shown(page, "relative-load").astype(float).set_index(["layer", "expert"])
        count, tokens = table.loc[1, "count"].sum(), table.loc[1, "tokens"].iloc[0]
        assert count / tokens == pytest.approx(2 - 0.5 * (subject == 0))
        # Three over T_eff, and N T / A from a frequency to a load.
        wide = max(median[1 + subject] * 2 ** (eighths / 8), median[1 + subject], 1)
        wanted = 3 * wide / tokens * 8 * tokens / count
        assert table.loc[(1, NEVER), "ci_high"] == pytest.approx(wanted, rel=1e-3)
        loads = table.loc[2, ["relative_load", "ci_low", "ci_high"]]
        assert loads.isna().to_numpy().all()


def test_subjects_without_tokens_have_no_divergence_by_noise(
    question: Path, open_page: Open
) -> None:
    page, table = open_page(question), read(question, "divergence")
    # Nothing is selected in layer 2, which no mean counts.
    wanted = table[table["layer"] == 1].set_index(["subject", "other"]).sort_index()
    for layer in ("", "0"):
        choose(page, "subject-divergence", "Layer", layer)
        found = shown(page, "subject-divergence").set_index(["subject", "other"]).sort_index()
        assert found.index.tolist() == wanted.index.tolist()
        for name in ("divergence_bits", "divergence_null_bits"):
            np.testing.assert_allclose(
                found[name].astype(float), wanted[name].astype(float), rtol=1e-4
            )
    assert wanted["divergence_null_bits"].isna().tolist() == [False, True, True]


def test_areas_keep_their_design_effects_whatever_their_letters(
    question: Path, open_page: Open
) -> None:
    page = open_page(question)
    found = [
        page.page.evaluate("area => MoeProbe.page.data.areas.indexOf(area)", area)
        for _, _, area in GROUPS[:2]
    ]
    assert found == [0, 1]


def test_unnamed_text_is_not_drawn_twice(question: Path, open_page: Open) -> None:
    page = open_page(question)
    choose(page, "repeats", "Subject", "0")
    table, wanted = shown(page, "repeats"), read(question, "repeats")
    assert set(table["subject"]) == {"all", "(no subject)"}
    assert not table.duplicated(["layer", "lag", "subject"]).any()
    pooled = wanted[(wanted["layer"] == 1) & wanted["subject"].isna()]
    drawn = table[table["subject"] == "all"]
    assert drawn["pairs"].astype(int).tolist() == pooled["pairs"].tolist()
    places = pd.DataFrame(shown(page, "placement"))
    assert not places.duplicated(["placed_for", "subject"]).any()


def test_what_is_not_known_is_said(tmp_path: Path, open_page: Open) -> None:
    layers = [LayerSpec(layer=0, num_experts=4, top_k=1)]
    with TraceWriter(tmp_path / "trace", layers=layers, capture="counts") as writer:
        for number in range(4):
            writer.add([np.arange(20)[:, None] % 4], subject="s", doc_id=number)
    page = open_page(report_of(tmp_path / "trace"))
    assert page.text("#imbalance figcaption").endswith("T_eff is not known, and T stands for it")
    choose(page, "relative-load", "Text", "segment:1")
    page.page.evaluate("MoeProbe.page.select(0, 1)")
    page.wait()
    said = page.text("#relative-load .status")
    assert "95% interval – to –; fair" in said
    assert "counting rule that counts each once" in page.text("#coverage .absent")


def test_where_nothing_counts_no_other_reason_is_given(tmp_path: Path, open_page: Open) -> None:
    with TraceWriter(tmp_path / "trace", layers=LAYERS[:1]) as writer:
        for number in range(6):
            ends: Any = dict.fromkeys(("question_end", "cue_end", "choice_end"), 12)
            ids_TK = np.arange(24).reshape(12, 2) % 8
            writer.add([ids_TK], subject="ab"[number % 2], doc_id=number, prefix_end=12, **ends)
    settings = Settings(rule=Rule.QUESTION, shuffles=2, replicates=10, permutations=10)
    write_report(open_trace(tmp_path / "trace"), tmp_path / "report", settings, figure_kinds=())
    page = open_page(tmp_path / "report")
    idle = ("burstiness", "longest-idle", "idle-windows", "idle-experts")
    subjects = ("subject-divergence", "subject-volcano", "subject-ranking")
    for view in ("sorted-load", "imbalance", "coverage", "devices", *idle, *subjects):
        assert page.text(f"#{view} .absent") == "Not shown: no token counts under this rule."
