"""Where pipeline stages lie, what may replace them, and names that are none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from moe_probe.errors import TraceError, UsageError
from moe_probe.recording.raw_names import raw_name, read_raw_name
from moe_probe.recording.stages import open_trace
from moe_probe.trace import TraceWriter, check_output
from moe_probe.trace.files import TraceFiles, read_run, write_run
from tests.recording.asked import random_asked, record_stage
from tests.trace.recordings import LAYERS


@pytest.fixture
def unjoined(tmp_path: Path) -> Path:
    """A place where two stages were recorded."""
    asked = random_asked(np.random.default_rng(0), 4)
    for stage in (0, 1):
        record_stage(tmp_path / "t", stage, LAYERS[2 * stage : 2 * stage + 2], asked)
    return tmp_path / "t"


def test_stages_alone_are_a_trace_that_can_be_continued_or_replaced(unjoined: Path) -> None:
    with pytest.raises(UsageError, match="already holds a trace"):
        check_output(unjoined, resume=False, force=False)
    check_output(unjoined, resume=True, force=False)
    (unjoined / "stages" / "notes").mkdir()
    with TraceWriter(unjoined, layers=LAYERS, force=True) as writer:
        writer.add([np.zeros((3, spec.top_k), int) for spec in LAYERS])
    # Whatever else lies there stays.
    assert [path.name for path in (unjoined / "stages").iterdir()] == ["notes"]
    assert open_trace(unjoined).sequences.num_rows == 1


def test_a_stage_at_work_is_not_replaced(unjoined: Path) -> None:
    with (
        TraceWriter(unjoined / "stages" / "7", layers=LAYERS[:1]),
        pytest.raises(TraceError, match=r"Another process is recording into .*stages/7"),
    ):
        TraceWriter(unjoined, layers=LAYERS, force=True)


@pytest.mark.parametrize("join", [None, 3, {"of": 3}, {"of": {}, "first": "0", "is_done": True}])
def test_nonsense_about_a_join_is_no_join(unjoined: Path, join: object) -> None:
    layers = [spec.to_json() for spec in LAYERS]
    run = {"moe_probe_trace": 1, "capture": "ids", "layers": layers, "status": "killed"}
    write_run(TraceFiles(unjoined), {**run, "join": join})
    assert open_trace(unjoined).sequences.num_rows == 4
    assert read_run(TraceFiles(unjoined))["join"]["is_done"]


@pytest.mark.parametrize("tokens", [[], [0, 5, 1 << 30]])
def test_a_name_says_request_and_tokens(tokens: list[int]) -> None:
    name = read_raw_name(raw_name('cmpl-"é"-0', np.array(tokens, np.int32)))
    assert (name.request_id, name.unstored_T.tolist()) == ('cmpl-"é"-0', tokens)
    assert name.unstored_T.dtype == np.int32


@pytest.mark.parametrize(
    "text", ["", "cmpl-0", "{}", "[]", "[3]", '["a", "b"]', '["a", 1e99]', '["a", [1]]', "[" * 9999]
)
def test_a_name_that_is_none(text: str) -> None:
    with pytest.raises(TraceError, match="which is no name"):
        read_raw_name(text)
