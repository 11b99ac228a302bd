"""Every notebook runs, is stored without results, and has the numbers of a report."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import pytest
from nbclient import NotebookClient
from traitlets.config import Config

from moe_probe.analysis import Rule, Settings, write_report
from moe_probe.bundled import SAMPLE_TRACE
from moe_probe.trace import open_trace

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
MAX_LINES = 10
SETTINGS = {
    "unique": Settings(),
    "question": Settings(rule=Rule.QUESTION, windows=(50, 100, 200)),
}
Report = Callable[[str], tuple[dict[str, Any], Path]]


def read(name: str) -> Any:
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=nbformat.NO_CONVERT)


def run(name: str, expression: str) -> tuple[Any, Any]:
    """Execute a notebook; return it, and an expression's value at its end, by way of JSON."""
    book = read(name)
    wanted = f"import json\nprint(json.dumps(({expression})))"
    book.cells.append(nbformat.v4.new_code_cell(wanted))
    # Sockets of the file system: no other process listens.
    transport = Config({"KernelManager": {"transport": "ipc"}})
    NotebookClient(book, timeout=300, config=transport).execute()
    return book, json.loads(book.cells.pop().outputs[0]["text"])


def shown(book: Any, kind: str) -> list[str]:
    """What the cells show, of one MIME type."""
    outputs = [output for cell in book.cells for output in cell.get("outputs", [])]
    return ["".join(o["data"][kind]) for o in outputs if kind in o.get("data", {})]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """Write a report with some settings, once: its JSON, and the folder of its tables."""

    @cache
    def write(settings: str) -> tuple[dict[str, Any], Path]:
        folder = tmp_path_factory.mktemp(settings)
        write_report(open_trace(SAMPLE_TRACE), folder, SETTINGS[settings], tables_only=True)
        return json.loads((folder / "report.json").read_text("utf-8")), folder / "tables"

    return write


def test_notebooks_are_the_four() -> None:
    names = ["01_first_look", "02_idle_experts", "03_subjects", "04_your_own_metric"]
    assert names == NOTEBOOKS


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_is_stored_without_results(name: str) -> None:
    book = read(name)
    nbformat.validate(book)
    assert set(book.metadata) == {"kernelspec", "language_info"}
    assert book.cells[0].source.startswith("# ")
    for cell in book.cells:
        assert cell.metadata == {}
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None)
            assert len(cell.source.splitlines()) <= MAX_LINES, cell.source


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_links_lead_somewhere(name: str) -> None:
    text = " ".join(cell.source for cell in read(name).cells if cell.cell_type == "markdown")
    for target in re.findall(r"\]\(([^)]+)\)", text):
        assert (FOLDER / target).is_file(), target


def test_first_look_has_the_loads_of_the_report(report: Report) -> None:
    columns = ["max_vio", "max_vio_null", "max_vio_noise", "effective_experts"]
    book, values = run("01_first_look", f"found.layers[{columns}].to_numpy().tolist()")
    document, _ = report("unique")
    assert values == [[row[name] for name in columns] for row in document["layers"]]
    pages = " ".join(shown(book, "text/html"))
    most = document["most_used"][0]
    assert f"<td>{most['relative_load']:.6f}</td>" in pages
    assert "MaxVio, by how much" in pages, "the analysis shows its findings"
    assert len(shown(book, "image/png")) == 2


def test_idle_runs_are_those_of_the_report(report: Report) -> None:
    expression = 'found.headline.idle, found.idle_windows["runs"].tolist()'
    book, (sentence, runs) = run("02_idle_experts", expression)
    document, tables = report("question")
    assert sentence == document["findings"][2]
    assert runs == pd.read_parquet(tables / "idle_windows.parquet")["runs"].tolist()
    longest = max(pd.read_parquet(tables / "experts.parquet")["longest_idle"])
    assert f"the longest run: {longest:,.0f}" in sentence
    assert f"<td>{longest:.0f}</td>" in " ".join(shown(book, "text/html"))
    assert len(shown(book, "image/png")) == 2


def test_subjects_are_as_far_apart_as_in_the_report(report: Report) -> None:
    columns = ["mutual_information_bits", "null", "null_95", "p_value", "decodability"]
    expression = f"found.headline.uneven, found.specialization[{columns}].to_numpy().tolist()"
    book, (sentence, values) = run("03_subjects", expression)
    document, tables = report("question")
    assert sentence == document["findings"][0]
    table = pd.read_parquet(tables / "specialization.parquet")
    assert values == table[columns].to_numpy().tolist()
    assert (table["mutual_information_bits"] > table["null_95"]).all()
    assert len(shown(book, "image/png")) == 2


def test_own_metric_counts_every_token_of_the_report(report: Report) -> None:
    expression = "{n: t.tolist() for n, t in tokens.items()}, sorted(slow.items()), by_chance(4)"
    _, (tokens, slow, chance) = run("04_your_own_metric", expression)
    document, _ = report("unique")
    assert [sum(tokens_D) for tokens_D in tokens.values()] == [document["tokens"]] * 4
    assert [[n, t] for n, t in enumerate(tokens["4"]) if t] == slow
    # The model's groups of eight experts; a token goes to two of them.
    assert all(tokens_D[3:] == [0, 0] for tokens_D in tokens.values())
    # Four cards of 32, eight of each suit: how many suits?
    assert chance == pytest.approx(4 - 4 * (24 * 23 * 22 * 21) / (32 * 31 * 30 * 29))
