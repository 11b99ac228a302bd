"""The options people script against. A new one is added here on purpose; none goes quietly."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from moe_probe.cli import app

OPTIONS = {
    "": "--version -V --install-completion --show-completion",
    "check": "trace --json --quiet -q",
    "compare": (
        "traces --output -o --rule --baseline-accuracy --seed --threads --force -f --json "
        "--quiet -q"
    ),
    "demo": "--output -o --force -f",
    "env": "--json",
    "export": "trace --format --output -o --rule --layers --subject --force -f --json",
    "ls": "kind search --json",
    "mmlu": "",
    "mmlu prepare": "--src --out --force -f",
    "record": (
        "--model -m --task -t --backend --server --num-fewshot --limit -L --batch-size -b --dtype "
        "--device --model-args -a --capture --sample --output -o --force -f --resume --baseline "
        "--mmlu-dir --include-path --dry-run --quiet -q"
    ),
    "report": (
        "trace --output -o --rule --order --window --seed --threads --tokenizer --figures "
        "--tables-only --force -f --json --quiet -q"
    ),
}
RUNNABLE = [name for name in OPTIONS if name not in ("", "mmlu")]


def walk(command: Any, name: str = "") -> Iterator[tuple[str, list[str]]]:
    yield name, [option for parameter in command.params for option in parameter.opts]
    for child, sub in getattr(command, "commands", {}).items():
        yield from walk(sub, f"{name} {child}".strip())


COMMANDS = dict(walk(typer.main.get_command(app)))


def test_commands_are_the_frozen_ones() -> None:
    assert sorted(COMMANDS) == sorted(OPTIONS)


@pytest.mark.parametrize("name", OPTIONS)
def test_options_are_the_frozen_ones(name: str) -> None:
    assert COMMANDS[name] == OPTIONS[name].split()


@pytest.mark.parametrize("name", RUNNABLE)
def test_help_has_an_example_that_uses_real_options(name: str) -> None:
    text = " ".join(CliRunner().invoke(app, [*name.split(), "--help"]).output.split())
    example = re.search(rf"Example: moe-probe {name}\b(.*?) (?:Arguments|Options):", text)
    assert example, f"no example of moe-probe {name} in:\n{text}"
    used = re.findall(r"(?<!\S)--?[a-z][a-z-]*", example[1])
    assert set(used) <= {*OPTIONS[name].split()}


def test_underscores_of_lm_eval_are_understood() -> None:
    result = CliRunner().invoke(app, ["record", "--num_fewshot", "many"])
    assert "Invalid value for '--num-fewshot'" in result.output


@pytest.mark.parametrize(("arguments", "suggestion"), [("recrod", "record"), ("reprot", "report")])
def test_misspelt_command_is_usage_error_with_suggestion(arguments: str, suggestion: str) -> None:
    result = CliRunner().invoke(app, [arguments])
    assert result.exit_code == 2
    assert f"Did you mean '{suggestion}'" in result.output
