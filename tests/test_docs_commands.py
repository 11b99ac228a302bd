"""What README.md and docs/*.md tell a reader to type is what the command line takes, and works.

Commands run against the trace of the bundled example, under whatever names the pages give it.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from moe_probe.cli import app
from tests.pages import PAGES, ROOT, Block, blocks, inline_commands, parse, run, run_python
from tests.pages import traces_opened as opened

ONLY_PARSED = [
    (r"--model (olmoe|deepseek|qwen|mixtral|gpt-oss)", "downloads a model"),
    (r"--model \./", "records a model of the reader's own"),
    (r"--server ", "needs a running server"),
    (r"--backend vllm", "needs the vLLM engine"),
    (r"moe-probe demo", "takes minutes; it is record and report, which have tests of their own"),
]
"""Command lines that are parsed and not run, and why. So are those in running text, which have
words such as TRACE in them."""
RUN_ELSEWHERE = {
    "explore.md": "tests/test_explore_docs.py",
    "analysis.md": "tests/analysis/test_docs.py",
    "trace-format.md": "tests/trace/test_other_tools.py",
}
"""Pages whose blocks another test runs, and compares what they give."""

BLOCKS = [block for page in PAGES for block in blocks(page)]
COMMANDS = [(block, command) for block in BLOCKS for command in block.commands]
INLINE = [(page, command) for page in PAGES for command in inline_commands(page)]
RUN = [
    (block, command)
    for block, command in COMMANDS
    if block.page.name not in RUN_ELSEWHERE
    and not any(re.search(pattern, command) for pattern, _ in ONLY_PARSED)
]
PYTHON = [b for b in BLOCKS if b.language == "python" and b.page.name not in RUN_ELSEWHERE]


@pytest.fixture(scope="module")
def folder(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reader")
    shutil.copytree(demo, folder / "demo")
    shutil.copy(ROOT / "moe_probe" / "bundled" / "tiny_moe" / "tokenizer.json", folder)
    return folder


@pytest.fixture
def reader(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with `demo` as `moe-probe demo` writes it."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    return folder


def provide(folder: Path, name: str) -> None:
    """Put a trace where a page says the reader has one."""
    path = folder / name.replace("*", "2026-01-01")
    if not path.exists():
        shutil.copytree(folder / "demo" / "trace", path)


@pytest.mark.parametrize(("block", "command"), COMMANDS, ids=str)
def test_every_command_line_is_understood(block: Block, command: str) -> None:
    parse(command)


@pytest.mark.parametrize(("page", "command"), INLINE, ids=lambda value: Path(value).name)
def test_commands_in_running_text_are_understood(page: Path, command: str) -> None:
    try:
        parse(command)
    except Exception as error:
        # Some name the command and leave the rest out; --help and --version end at once.
        if type(error).__name__ not in ("MissingParameter", "Exit"):
            raise


@pytest.mark.parametrize(("block", "command"), RUN, ids=str)
def test_every_command_line_runs(reader: Path, block: Block, command: str) -> None:
    context = parse(command)
    for parameter in context.command.params:
        if parameter.param_type_name == "argument":
            given = context.params[parameter.name]
            for value in given if isinstance(given, list | tuple) else [given]:
                if isinstance(value, Path):
                    provide(reader, str(value))
    run(command)


@pytest.mark.parametrize("page", sorted({block.page for block in PYTHON}), ids=lambda p: p.name)
def test_python_of_a_page_runs_from_top_to_bottom(reader: Path, page: Path) -> None:
    names: dict[str, Any] = {}
    for block in PYTHON:
        if block.page == page:
            for name in opened(block):
                provide(reader, name)
            run_python(block, names)


def test_pages_that_others_run_are_run_there() -> None:
    for page, test in RUN_ELSEWHERE.items():
        assert page in (ROOT / test).read_text("utf-8")


def test_the_pages_have_what_this_test_looks_for() -> None:
    """A fence of another form must not hide everything."""
    found = {(block.page.name, block.language) for block in BLOCKS}
    for expected in (
        ("README.md", "shell"),
        ("README.md", "python"),
        ("import.md", "shell"),
        ("explore.md", "sql"),
        ("vllm.md", "shell"),
    ):
        assert expected in found
    names = "|".join(info.name or "" for info in app.registered_commands)
    lines = re.compile(rf"^ *moe-probe ({names}|mmlu)\b.*$", re.M)
    typed = [line for page in PAGES for line in lines.findall(page.read_text("utf-8"))]
    assert len(COMMANDS) >= len(typed) > 10
    assert RUN
    assert PYTHON


@pytest.mark.parametrize(
    "command",
    ["moe-probe repot x", "moe-probe report x --rules raw", "moe-probe report x --rule some"],
)
def test_what_the_command_line_lacks_is_found(command: str) -> None:
    with pytest.raises(Exception, match=r"No such (command|option)|Invalid value|is not one of"):
        parse(command)
