"""Figures drawn by several processes: the same files, whatever becomes of the processes.

Shape suffixes: none.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

from moe_probe.analysis import Analysis, analyse
from moe_probe.analysis.report import pictures
from moe_probe.analysis.report.pictures import Drawn, draw, drawing
from moe_probe.trace import LayerSpec, TraceWriter

WANTED = {"sorted_load": ("png",), "log_odds": ("png", "svg"), "coverage": ("svg",)}
forks = pytest.mark.skipif(sys.platform != "linux", reason="one process draws")


@pytest.fixture(scope="module")
def analysis(tmp_path_factory: pytest.TempPathFactory) -> Analysis:
    """Of one subject, so that `log_odds` is absent."""
    path, rng = tmp_path_factory.mktemp("drawing") / "trace", np.random.default_rng(0)
    with TraceWriter(path, layers=[LayerSpec(layer=0, num_experts=8, top_k=2)]) as writer:
        for number in range(3):
            ids = rng.random((20, 8)).argsort(axis=1)[:, :2]
            writer.add([ids], subject="s", doc_id=number)
    return analyse(path, shuffles=2, replicates=5, permutations=5, windows=(10,), threads=1)


@pytest.fixture(scope="module")
def expected(analysis: Analysis) -> dict[str, Drawn]:
    return {name: draw(analysis, name, kinds) for name, kinds in WANTED.items()}


@pytest.mark.parametrize("processes", [1, 2, 8])
def test_processes_draw_the_same(
    analysis: Analysis, expected: dict[str, Drawn], processes: int
) -> None:
    with drawing(analysis, WANTED, processes) as finish:
        helpers = len(multiprocessing.active_children())
        drawn = finish()
    assert helpers == (min(processes, len(WANTED)) - 1) * (sys.platform == "linux")
    assert drawn == expected
    assert list(drawn) == list(WANTED)
    assert drawn["log_odds"] == "all tokens are of one subject"
    assert not multiprocessing.active_children()


def test_nothing_is_drawn_where_nothing_is_wanted(analysis: Analysis) -> None:
    with drawing(analysis, {}, 8) as finish:
        assert finish() == {}


@forks
def test_what_a_killed_process_had_begun_is_drawn(
    analysis: Analysis, expected: dict[str, Drawn], monkeypatch: pytest.MonkeyPatch
) -> None:
    main = os.getpid()

    def draw_or_die(*arguments: object) -> Drawn:
        if os.getpid() != main:
            os.kill(os.getpid(), signal.SIGKILL)
        return draw(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(pictures, "draw", draw_or_die)
    with drawing(analysis, WANTED, 2) as finish:
        multiprocessing.active_children()[0].join()
        assert finish() == expected


@forks
def test_no_process_is_left_where_the_report_fails(analysis: Analysis) -> None:
    def fail() -> None:
        with drawing(analysis, WANTED, 3):
            assert multiprocessing.active_children()
            raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        fail()
    assert not multiprocessing.active_children()


@forks
def test_a_process_ends_though_nobody_waits_for_it(analysis: Analysis, tmp_path: Path) -> None:
    """As where a report is killed: what helps it must not stay."""
    report = os.fork()
    if report == 0:
        with drawing(analysis, WANTED, 2):
            (helper,) = multiprocessing.active_children()
            (tmp_path / "helper").write_text(str(helper.pid))
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
