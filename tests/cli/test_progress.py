"""Progress of a scan: a bar on a terminal, a line every 30 s elsewhere, nothing where asked."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from moe_probe import progress as line
from moe_probe.analysis.quality import check_trace
from moe_probe.cli import progress
from moe_probe.cli.progress import ScanProgress
from moe_probe.trace import LayerSpec, TraceWriter, open_trace

NUM_LAYERS = 11


def pretend_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make both streams a terminal that has colours; pytest has others once a test begins."""
    for stream in (sys.stdout, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    layers = [LayerSpec(layer=3 + n, num_experts=8, top_k=2) for n in range(NUM_LAYERS)]
    with TraceWriter(tmp_path / "trace", layers=layers) as writer:
        for doc_id in range(4):
            ids = [rng.random((30, 8)).argsort(axis=1)[:, :2] for _ in layers]
            writer.add(ids, subject="ab"[doc_id % 2], doc_id=doc_id)
    return tmp_path / "trace"


def test_without_a_terminal_a_line_comes_every_30_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(line, "time", SimpleNamespace(monotonic=lambda: clock.now))
    for quiet in (False, True):
        with ScanProgress(60, quiet=quiet) as shown:
            start = clock.now
            for done, seconds in enumerate((1, 29.9, 30, 31, 59.9, 75, 104, 106), start=1):
                clock.now = start + seconds
                shown.update(done, 60)
        expected = [] if quiet else ["3 of 60 layers scanned", "6 of 60 layers scanned"]
        expected += [] if quiet else ["8 of 60 layers scanned"]
        assert capsys.readouterr().err.splitlines() == expected


@pytest.mark.parametrize(("delay", "is_shown"), [(0.0, True), (60.0, False)])
def test_bar_is_shown_for_what_takes_long(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    delay: float,
    is_shown: bool,
) -> None:
    pretend_terminal(monkeypatch)
    monkeypatch.setattr(progress, "_DELAY_SECONDS", delay)
    with ScanProgress(58) as shown:
        if is_shown:
            shown._delay.join()
        shown.update(29, 58)
    out, err = capsys.readouterr()
    assert out == ""
    assert bool(err) == is_shown
    assert ("scanning" in err and "29/58" in err and "layers" in err) == is_shown


@pytest.mark.parametrize("command", ["check", "report"])
def test_commands_tell_layers_done_of_all(
    probe: Any, trace: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(ScanProgress, "update", lambda _, *numbers: told.append(numbers))
    options = ["--threads", "1", "--tables-only"] if command == "report" else []
    result = probe(command, trace, *options)
    assert result.code == 0
    assert len(told) > 1
    assert told == sorted(told)
    assert told[-1] == (NUM_LAYERS, NUM_LAYERS)
    assert {total for _, total in told} == {NUM_LAYERS}


def test_progress_changes_no_check(trace: Path) -> None:
    told: list[tuple[int, int]] = []
    opened = open_trace(trace)
    checks = check_trace(opened, progress=lambda *numbers: told.append(numbers))
    assert checks == check_trace(opened)
    assert told[-1] == (NUM_LAYERS, NUM_LAYERS)


@pytest.mark.parametrize("command", ["check", "report"])
def test_quiet_leaves_the_result_alone(probe: Any, trace: Path, command: str) -> None:
    options = ["--tables-only"] if command == "report" else []
    spoken = probe(command, trace, *options)
    quiet = probe(command, trace, *options, "--quiet")
    assert quiet.out == spoken.out
    assert quiet.err == ""
    assert spoken.err == (f"Next: moe-probe report {trace}\n" if command == "check" else "")


@pytest.mark.parametrize("variables", [{}, {"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_colour_is_for_terminals_that_want_it(
    probe: Any, trace: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    pretend_terminal(monkeypatch)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    out = probe("report", trace, "--tables-only").out
    assert ("\x1b[" in out) == (not variables)
    assert bool(re.search("[─-╿]", out)) == (not variables)
    document = probe("report", trace, "--tables-only", "--json").out
    assert json.loads(document)["tokens"] == 120
