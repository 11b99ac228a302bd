"""Figures drawn by several processes: the same files, whatever becomes of the processes.

Shape suffixes: none.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest

from moe_probe.analysis import Analysis, analyse
from moe_probe.analysis.figures import FIGURES
from moe_probe.analysis.report import drawing
from moe_probe.analysis.report.drawing import Drawers, Drawn, draw
from moe_probe.trace import LayerSpec, TraceWriter
from tests.analysis.planted import ragged, write

WANTED = {"sorted_load": ("png",), "log_odds": ("png", "svg"), "coverage": ("svg",)}
FEW: dict[str, Any] = {
    **{"shuffles": 2, "replicates": 5, "permutations": 5, "windows": (10,), "threads": 1}
}
forks = pytest.mark.skipif(sys.platform != "linux", reason="this process draws")


@pytest.fixture(scope="module")
def analysis(tmp_path_factory: pytest.TempPathFactory) -> Analysis:
    """Of one subject, so that `log_odds` is absent."""
    path, rng = tmp_path_factory.mktemp("drawing") / "trace", np.random.default_rng(0)
    with TraceWriter(path, layers=[LayerSpec(layer=0, num_experts=8, top_k=2)]) as writer:
        for number in range(3):
            ids = rng.random((20, 8)).argsort(axis=1)[:, :2]
            writer.add([ids], subject="s", doc_id=number)
    return analyse(path, **FEW)


@pytest.fixture(scope="module")
def expected(analysis: Analysis) -> dict[str, Drawn]:
    return {name: draw(analysis, name, kinds) for name, kinds in WANTED.items()}


@pytest.fixture(autouse=True)
def _no_process_is_left() -> Iterator[None]:
    yield
    assert not multiprocessing.active_children()


def all_drawn(drawers: Drawers) -> dict[str, Drawn]:
    return {name: drawers.drawn(name) for name in WANTED}


def drawn_in_time(drawers: Drawers) -> dict[str, Drawn]:
    """The same; nothing, where that takes without end."""
    found: dict[str, Drawn] = {}
    waiting = Thread(target=lambda: found.update(all_drawn(drawers)), daemon=True)
    waiting.start()
    waiting.join(20)
    return found


@pytest.mark.parametrize("processes", [1, 2, 8, None])
def test_processes_draw_the_same(
    analysis: Analysis,
    expected: dict[str, Drawn],
    processes: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Drawers(processes) as drawers:
        is_alone = processes == 1 or sys.platform != "linux"
        assert len(multiprocessing.active_children()) == (not is_alone)
        if not is_alone:
            monkeypatch.setattr(drawing, "draw", None)
        drawers.begin(analysis, WANTED)
        assert all_drawn(drawers) == expected
    assert expected["log_odds"] == "all tokens are of one subject"


@forks
def test_others_get_all_that_figures_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names, tokens_D = ragged(2, 31, 12, 0)
    weights = {0: np.ones((len(names), 8))}
    found = analyse(write(tmp_path / "trace", weights, names, tokens_D, top_k=2, seed=0), **FEW)
    expected = {name: draw(found, name, ("svg",)) for name in FIGURES}
    assert not [drawn for drawn in expected.values() if isinstance(drawn, str)]
    assert set(found.made) == set(drawing._TABLES)
    with Drawers() as drawers:
        monkeypatch.setattr(drawing, "draw", None)
        drawers.begin(found, dict.fromkeys(FIGURES, ("svg",)))
        for name, drawn in expected.items():
            assert drawers.drawn(name) == drawn, name


def test_nothing_is_drawn_where_nothing_is_wanted(analysis: Analysis) -> None:
    with Drawers() as drawers:
        drawers.begin(analysis, {})


@forks
@pytest.mark.parametrize("processes", [2, 3])
def test_what_killed_processes_had_begun_is_drawn(
    analysis: Analysis,
    expected: dict[str, Drawn],
    processes: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    main = os.getpid()

    def draw_or_die(*arguments: Any) -> Drawn:
        if os.getpid() != main:
            os.kill(os.getpid(), signal.SIGKILL)
        return draw(*arguments)

    monkeypatch.setattr(drawing, "draw", draw_or_die)
    with Drawers(processes) as drawers:
        drawers.begin(analysis, WANTED)
        assert all_drawn(drawers) == expected


@forks
def test_what_is_killed_before_it_begins_is_not_missed(
    analysis: Analysis, expected: dict[str, Drawn]
) -> None:
    with Drawers(2) as drawers:
        (process,) = multiprocessing.active_children()
        process.kill()
        process.join()
        drawers.begin(analysis, WANTED)
        assert all_drawn(drawers) == expected


@forks
def test_processes_that_do_not_get_ready_are_not_waited_for(
    analysis: Analysis, expected: dict[str, Drawn], monkeypatch: pytest.MonkeyPatch
) -> None:
    """More is sent than a pipe holds, to a process that does not read it."""
    monkeypatch.setattr(drawing, "_get_ready", lambda: signal.sigtimedwait([], 60))
    monkeypatch.setattr(drawing, "_sent", lambda _: bytes(1 << 20))
    monkeypatch.setattr(drawing, "_PATIENCE", 0.2)
    with Drawers(2) as drawers:
        drawers.begin(analysis, WANTED)
        assert drawn_in_time(drawers) == expected


@forks
def test_figures_for_which_memory_runs_out_on_the_way_are_drawn_here(
    analysis: Analysis, expected: dict[str, Drawn], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise MemoryError

    with Drawers(2) as drawers:
        monkeypatch.setattr(drawing, "wait", fail)
        drawers.begin(analysis, WANTED)
        assert drawn_in_time(drawers) == expected


@forks
@pytest.mark.parametrize(
    ("starter", "error"),
    [
        ("multiprocessing.context.ForkProcess", BlockingIOError()),
        ("moe_probe.analysis.report.drawing.Thread", RuntimeError("can't start new thread")),
    ],
)
def test_this_process_draws_where_there_are_no_more_processes_or_threads(
    analysis: Analysis,
    expected: dict[str, Drawn],
    starter: str,
    error: Exception,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(_: Any) -> None:
        raise error

    monkeypatch.setattr(f"{starter}.start", fail)
    with Drawers(2) as drawers:
        drawers.begin(analysis, WANTED)
        assert all_drawn(drawers) == expected


@forks
def test_errors_of_processes_are_told_by_the_one_that_waits(
    analysis: Analysis, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any) -> None:
        raise ImportError("failed to map segment")

    monkeypatch.setattr(drawing, "draw", fail)
    with Drawers(3) as drawers:
        drawers.begin(analysis, WANTED)
        with pytest.raises(ImportError, match="failed to map segment"):
            all_drawn(drawers)
    assert capfd.readouterr().err == ""


@forks
def test_no_process_is_left_where_the_report_fails(analysis: Analysis) -> None:
    def fail() -> None:
        with Drawers(3) as drawers:
            drawers.begin(analysis, WANTED)
            assert multiprocessing.active_children()
            raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        fail()


@forks
@pytest.mark.parametrize("has_begun", [True, False])
def test_a_process_ends_though_nobody_waits_for_it(
    analysis: Analysis, has_begun: bool, tmp_path: Path
) -> None:
    """As where a report is killed: what helps it must not stay."""
    report = os.fork()
    if report == 0:
        drawers = Drawers(2)
        (helper,) = multiprocessing.active_children()
        (tmp_path / "helper").write_text(str(helper.pid))
        if has_begun:
            drawers.begin(analysis, WANTED)
        os._exit(0)
    os.waitpid(report, 0)
    helper_id = int((tmp_path / "helper").read_text())
    for _ in range(400):
        try:
            state = Path(f"/proc/{helper_id}/stat").read_text().rsplit(")")[1].split()[0]
        except OSError:
            return
        if state == "Z":
            return
        signal.sigtimedwait([], 0.05)
    pytest.fail("the process still runs")
