"""The view of one document in a browser: its tokens and experts are the trace's own rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tokenizers import Tokenizer
from typer.testing import CliRunner

from moe_probe.cli import app
from moe_probe.errors import UsageError
from moe_probe.trace import open_trace
from tests.analysis.report.page.browser import Opened
from tests.analysis.report.page.traces import LAYERS, SUBJECTS
from tests.analysis.report.page.views import choose, read, shown

Open = Callable[..., Opened]
VIEW = "document"
TINY = Path(__file__).parents[4] / "moe_probe/bundled/tiny_moe"
CHIPS = f"#{VIEW} .chips button"


@pytest.fixture
def rows(plain: Path) -> pd.DataFrame:
    """Every stored token of the trace, with what its sequence is."""
    trace = open_trace(plain.parent / "trace")
    names = ["sequence_id", "subject", "doc_id", "prefix_end", "question_end", "cue_end"]
    return trace.to_pandas().merge(trace.sequences.select(names).to_pandas(), on="sequence_id")


def open_document(open_page: Open, folder: Path) -> Opened:
    """Open a page and draw the view."""
    page = open_page(folder, reduced_motion="reduce")
    page.page.locator(f"#{VIEW}").scroll_into_view_if_needed()
    page.page.wait_for_selector(f"#{VIEW}[data-drawn]")
    return page


@pytest.fixture
def page(open_page: Open, plain: Path) -> Opened:
    return open_document(open_page, plain)


def names(page: Opened) -> list[str]:
    """Return the documents that can be chosen."""
    box = page.page.locator(f"#{VIEW}").get_by_label("Document", exact=True)
    return [str(name) for name in box.locator("option").all_inner_texts()]


def excerpt(rows: pd.DataFrame, name: str) -> pd.DataFrame:
    """Return the tokens of a document behind its prefix, as the trace stores them."""
    subject, document = name.split(", document ")
    mine = rows[(rows["subject"] == subject) & (rows["doc_id"] == int(document))]
    return mine[mine["position"] >= mine["prefix_end"]].sort_values("position")


def experts(rows: pd.DataFrame, place: int) -> np.ndarray:
    """Return the experts [T, K] of the layer at a place."""
    return np.stack(rows[LAYERS[place].ids_column].tolist())


def test_documents_are_of_all_subjects(page: Opened) -> None:
    found = names(page)
    assert len(set(found)) == len(found) == 12
    for subject in SUBJECTS:
        assert sum(name.startswith(f"{subject}, ") for name in found) == 4


@pytest.mark.parametrize("document", [0, 1, 11])
def test_chips_are_the_rows_of_the_trace(page: Opened, rows: pd.DataFrame, document: int) -> None:
    choose(page, VIEW, "Document", str(document))
    wanted = excerpt(rows, names(page)[document])
    assert len(wanted) > 10
    for place, spec in enumerate(LAYERS):
        choose(page, VIEW, "Layer", str(place))
        ids_TK = experts(wanted, place)
        for slot in range(spec.top_k):
            # By place: labels of slots begin at 1 and look like values.
            box = page.page.locator(f"#{VIEW}").get_by_label("Slot", exact=True)
            box.select_option(index=slot)
            page.wait()
            said = [text.split() for text in page.page.locator(CHIPS).all_inner_texts()]
            tokens = zip(wanted["token_id"], ids_TK[:, slot], strict=True)
            assert said == [[str(token), str(expert)] for token, expert in tokens]


def test_table_has_every_slot_and_the_stretch(page: Opened, rows: pd.DataFrame) -> None:
    choose(page, VIEW, "Document", "2")
    choose(page, VIEW, "Layer", "1")
    wanted = excerpt(rows, names(page)[2])
    found = shown(page, VIEW)
    assert found[["position", "token_id"]].astype(int).to_numpy().tolist() == (
        wanted[["position", "token_id"]].to_numpy().tolist()
    )
    slots = found[["expert_1", "expert_2"]].astype(int).to_numpy()
    assert slots.tolist() == experts(wanted, 1).tolist()
    is_question = wanted["position"] < wanted["question_end"]
    segment = np.where(wanted["position"] < wanted["cue_end"], "cue", "choice")
    assert found["segment"].tolist() == np.where(is_question, "question", segment).tolist()
    assert page.page.locator(f"#{VIEW} .chips .segment").all_inner_texts() == [
        *("question", "cue", "choice")
    ]


def test_click_selects_and_frames(page: Opened, rows: pd.DataFrame, plain: Path) -> None:
    choose(page, VIEW, "Layer", "1")
    wanted = excerpt(rows, names(page)[0])
    ids_TK = experts(wanted, 1)
    page.page.locator(CHIPS).nth(4).click()
    page.wait()
    chosen = ids_TK[4, 0]
    assert (page.state()["layer"], page.state()["expert"]) == (1, chosen)
    solid = page.page.locator(f"{CHIPS}.chosen")
    dotted = page.page.locator(f"{CHIPS}.elsewhere")
    assert (solid.count(), dotted.count()) == tuple((ids_TK == chosen).sum(axis=0))
    page.wait()
    number = int((ids_TK == chosen).any(axis=1).sum())
    table = read(plain, "experts")
    row = table[(table["layer"] == LAYERS[1].layer) & (table["expert"] == chosen)].iloc[0]
    said = page.text(f"#{VIEW} .host p:last-child")
    assert f"Expert {chosen} is in any slot of {number} of them" in said
    assert f"of all counted tokens {100 * row['frequency']:.3g} %, fair 16.7 %" in said
    choose(page, VIEW, "Layer", "0")
    assert solid.count() == dotted.count() == 0


def test_pointer_and_keys_say_all_experts(page: Opened, rows: pd.DataFrame) -> None:
    wanted = excerpt(rows, names(page)[0])
    chips = page.page.locator(CHIPS)
    status = page.page.locator(f"#{VIEW} [role=status]")

    def sentence(token: int) -> str:
        name = f"token id {wanted['token_id'].iloc[token]} at position {8 + token}"
        return f"{name}, question: experts {', '.join(map(str, experts(wanted, 0)[token]))}"

    chips.nth(3).hover()
    assert sentence(3) in status.inner_text()
    chips.nth(0).focus()
    for key, token in (("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1)):
        page.page.keyboard.press(key)
        assert sentence(token) in status.inner_text()
    assert chips.evaluate_all("all => all.filter(chip => chip.tabIndex === 0).length") == 1
    page.page.keyboard.press("Enter")
    page.wait()
    assert page.state()["expert"] == experts(wanted, 0)[1, 0]


def test_most_common_experts_are_coloured(page: Opened, rows: pd.DataFrame) -> None:
    choose(page, VIEW, "Layer", "2")
    numbers = np.bincount(experts(excerpt(rows, names(page)[0]), 2)[:, 0])
    key = page.page.locator(f"#{VIEW} [aria-label=Key] li").all_inner_texts()
    assert len(key) == 8
    order = np.argsort(-numbers, kind="stable")[:7]
    assert key[:7] == [f"expert {expert}: {numbers[expert]} tokens" for expert in order]
    assert f"by chance each {numbers.sum() / 16:.2g} of {numbers.sum()} tokens" in key[7]
    style = "all => all.map(chip => chip.style.getPropertyValue('--expert') !== '')"
    coloured = page.page.locator(CHIPS).evaluate_all(style)
    assert sum(coloured) == numbers[order].sum() < numbers.sum()


def test_tokens_are_text_where_a_tokenizer_is_given(
    open_page: Open, plain: Path, rows: pd.DataFrame, tmp_path: Path
) -> None:
    output, trace = tmp_path / "report", plain.parent / "trace"
    arguments = ["report", str(trace), "-o", str(output), "--tokenizer", str(TINY)]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    page = open_document(open_page, output)
    wanted = excerpt(rows, names(page)[0])
    tokenizer = Tokenizer.from_file(str(TINY / "tokenizer.json"))
    texts = [tokenizer.decode([token]) for token in wanted["token_id"]]
    assert shown(page, VIEW)["token_id"].astype(int).tolist() == wanted["token_id"].tolist()
    is_plain = [text.isascii() and text.isprintable() and bool(text.strip()) for text in texts]
    assert sum(is_plain) > 5
    said = page.page.locator(f"{CHIPS} span").evaluate_all("all => all.map(e => e.textContent)")
    table = shown(page, VIEW)["text"].tolist()
    for place in np.flatnonzero(is_plain):
        assert said[place] == table[place] == texts[place]


def test_tokenizer_that_is_none_is_said_before_the_scan(plain: Path, tmp_path: Path) -> None:
    arguments = ["report", str(plain.parent / "trace"), "-o", str(tmp_path / "report")]
    result = CliRunner().invoke(app, [*arguments, "--tokenizer", str(tmp_path)])
    assert isinstance(result.exception, UsageError)
    assert str(tmp_path / "tokenizer.json") in str(result.exception)
    assert not (tmp_path / "report").exists()
