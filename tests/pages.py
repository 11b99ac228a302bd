"""The code in README.md and docs/*.md: where it stands, and how a reader would run it."""

from __future__ import annotations

import ast
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any

import pytest
import typer.main

from moe_probe.cli import app, main

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# A fence, or lines indented by four after an empty one.
_BLOCK = re.compile(
    r"^```(?P<language>\w*)\n(?P<fenced>.*?)^```$"
    r"|(?<=\n\n)(?P<indented>(?:    [^\n]*\n|\n(?=    ))+)",
    re.M | re.S,
)
_SHELL = re.compile(r"(?:[A-Z_]+=\S+ )*(moe-probe|make|pip|git|curl|python|vllm|cd)\b")
_INLINE = re.compile(r"`(moe-probe\s[^`]+)`")


@dataclass(frozen=True)
class Block:
    """A block of code on a page."""

    page: Path
    section: str
    """The heading it stands under."""
    line: int
    """Of its first line of code."""
    language: str
    """python, sql, shell, or what the fence says; empty for drawings."""
    text: str

    @property
    def commands(self) -> list[str]:
        """The moe-probe commands of a shell block, one line each."""
        if self.language != "shell":
            return []
        lines = self.text.replace("\\\n", " ").splitlines()
        return [line for line in lines if re.match(r"([A-Z_]+=\S+ )*moe-probe ", line)]

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """Every block of a page, in order."""
    text = page.read_text("utf-8")
    found: list[Block] = []
    for match in _BLOCK.finditer(text):
        headings = re.findall(r"^##+ (.*)$", text[: match.start()], re.M)
        line = text.count("\n", 0, match.start()) + 1
        facts = (page, headings[-1] if headings else "")
        if match["fenced"] is not None:
            language = match["language"] or _language(match["fenced"])
            found.append(Block(*facts, line + 1, language, match["fenced"]))
        else:
            for skipped, code in _parts(re.sub("^    ", "", match["indented"], flags=re.M)):
                found.append(Block(*facts, line + skipped, _language(code), code))
    return found


def inline_commands(page: Path) -> list[str]:
    """The moe-probe commands that stand in running text, with whatever stands for arguments."""
    text = _BLOCK.sub("", page.read_text("utf-8"))
    return [" ".join(command.split()) for command in _INLINE.findall(text)]


def parse(command: str) -> Any:
    """Parse a command line as moe-probe would, and return the context of its last command.

    Raises what the parser raises, such as NoSuchOption.
    """
    words = shlex.split(command, comments=True)
    name, words = "moe-probe", words[words.index("moe-probe") + 1 :]
    parsed: Any = typer.main.get_command(app)
    context: Any = None
    while True:
        context = parsed.make_context(name, words, parent=context)
        if not hasattr(parsed, "commands"):
            return context
        name, parsed, words = parsed.resolve_command(
            context, [*context._protected_args, *context.args]
        )


def run(command: str) -> None:
    """Run a command line in this process; anything but success fails the test."""
    words = shlex.split(command, comments=True)
    expanded = [path for word in words for path in sorted(glob(word)) or [word]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", expanded)
        with pytest.raises(SystemExit) as ended:
            main()
    assert not ended.value.code, command


def run_python(block: Block, names: dict[str, Any]) -> Any:
    """Execute a block; return the value of its last line, as a notebook does."""
    tree = ast.parse(block.text)
    *before, last = tree.body
    if not isinstance(last, ast.Expr):
        exec(compile(tree, str(block), "exec"), names)
        return None
    exec(compile(ast.Module(before, []), str(block), "exec"), names)
    return eval(compile(ast.Expression(last.value), str(block), "eval"), names)


def traces_opened(block: Block) -> Iterator[str]:
    """Paths that a block of Python gives to what opens a trace."""
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            if name in ("open_trace", "analyse", "gather", "count"):
                yield str(node.args[0].value)


def _parts(code: str) -> Iterator[tuple[int, str]]:
    """Cut an indented block where shell gives way to Python; also the lines before each part."""
    paragraphs = [code] if _language(code) == "python" else code.split("\n\n")
    line = 0
    for paragraph in paragraphs:
        yield line, paragraph
        line += paragraph.count("\n") + 2


def _language(code: str) -> str:
    if _SHELL.match(code):
        return "shell"
    try:
        ast.parse(code)
    except SyntaxError:
        return ""
    # A lone line of JSON is Python, too.
    return "" if code.lstrip().startswith("{") else "python"
