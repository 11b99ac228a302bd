"""Where a worker's session writes, alone and as a pipeline stage, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from moe_probe.errors import TraceError, UsageError
from moe_probe.hooks.packing import PackedRows
from moe_probe.hooks.step_buffer import StepRows
from moe_probe.hooks.vllm.batch import NewRequest
from moe_probe.hooks.vllm.parallel import Place
from moe_probe.hooks.vllm.session import Session, Step
from moe_probe.hooks.vllm.settings import Settings
from moe_probe.hooks.vllm.traces import open_session, write_refusal
from moe_probe.recording.stages import open_trace, stages_of
from moe_probe.trace import Capture, TraceWriter
from moe_probe.trace.files import TraceFiles, read_run, write_run
from tests.hooks.vllm.fed import LAYERS, Engine, ids_of, num_counted, rows_of

FACTS = {"engine": {"instance": "abc"}, "max_length": 64, "model_facts": {"num_moe_layers": 2}}
PROMPTS = {"a": [1, 2, 3, 4], "b": [1, 2, 3, 5, 6], "c": [1, 2]}


def opened(root: Path, stage: int, num_stages: int = 2, **options: Any) -> Session:
    settings = {"path": root, "keeps_tokens": True, **options.pop("settings", {})}
    place = Place(tensor_rank=0, stage=stage, num_stages=num_stages, data_rank=0, num_data_ranks=1)
    layers = LAYERS[stage : stage + 1] if num_stages > 1 else LAYERS
    return open_session(Settings(**settings), place, layers, dict(FACTS), **options)


def serve(session: Session, name: str, prompt: list[int], cached: int = 0) -> None:
    """Run a prompt through the layer of a stage."""
    layer = [spec.layer for spec in LAYERS].index(session.writer.layout.layers[0].layer)
    rows = PackedRows(
        torch.from_numpy(ids_of(prompt)[cached:, 2 * layer : 2 * layer + 2]),
        None,
        token_id_T=torch.tensor(prompt[cached:], dtype=torch.int32),
        position_T=torch.arange(cached, len(prompt)),
        is_silent_L=torch.tensor([False]),
    )
    name = f"{name}-{len(prompt):08x}"
    counts_Q = np.array([len(prompt) - cached])
    new = NewRequest(name, len(prompt), cached, prompt, {})
    session.step(Step({}, [new], [name], counts_Q, StepRows(rows)))
    session.end([(name, len(prompt))])


def serve_all(sessions: list[Session], names: str) -> None:
    for session in sessions:
        for name in names:
            serve(session, name, PROMPTS[name])
        session.close(None, {})


@pytest.mark.parametrize("keeps_tokens", [False, True])
def test_stages_leave_the_trace_of_one_worker(tmp_path: Path, keeps_tokens: bool) -> None:
    settings = {"keeps_tokens": keeps_tokens}
    sessions = [opened(tmp_path / "t", stage, settings=settings) for stage in (1, 0)]
    for session in sessions:
        for name, prompt in PROMPTS.items():
            serve(session, name, prompt)
        serve(session, "d", [1, 2, 3, 4, 9], cached=3)
        session.close(None, {})
    engine = Engine(tmp_path / "e", keeps_tokens=keeps_tokens)
    for name, prompt in PROMPTS.items():
        engine.serve(name, prompt)
    engine.serve("d", [1, 2, 3, 4, 9], cached=3)
    engine.close()
    trace, expected = open_trace(tmp_path / "t"), open_trace(tmp_path / "e")
    assert trace.sequences.to_pylist() == expected.sequences.to_pylist()
    assert rows_of(tmp_path / "t") == rows_of(tmp_path / "e")
    assert num_counted(tmp_path / "t") == num_counted(tmp_path / "e")
    books = ("status", "completeness")
    assert {n: trace.run[n] for n in books} == {n: expected.run[n] for n in books}


def test_a_server_continues_what_its_stages_began(tmp_path: Path) -> None:
    serve_all([opened(tmp_path, stage) for stage in (0, 1)], "ab")
    serve_all([opened(tmp_path, stage) for stage in (1, 0)], "c")
    assert open_trace(tmp_path).sequences["request_id"].to_pylist() == ["a", "b", "c"]
    serve_all([opened(tmp_path, stage) for stage in (0, 1)], "a")
    trace = open_trace(tmp_path)
    assert trace.sequences["request_id"].to_pylist() == ["a", "b", "c", "a"]
    assert num_counted(tmp_path) == 4 + 5 + 2 + 4


def test_stages_that_were_joined_and_not_deleted_are_not_joined_again(tmp_path: Path) -> None:
    serve_all([opened(tmp_path, stage) for stage in (0, 1)], "ab")
    copies = {path: path.read_bytes() for path in tmp_path.rglob("stages/*/**/*.*")}
    open_trace(tmp_path)
    for path, content in copies.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    assert list(stages_of(TraceFiles(tmp_path))) == [0, 1]
    serve_all([opened(tmp_path, stage) for stage in (0, 1)], "c")
    assert open_trace(tmp_path).sequences["request_id"].to_pylist() == ["a", "b", "c"]


def test_a_server_waits_for_a_join_that_was_killed(tmp_path: Path) -> None:
    serve_all([opened(tmp_path, stage) for stage in (0, 1)], "a")
    run = open_trace(tmp_path).run
    write_run(TraceFiles(tmp_path), {**run, "join": {**run["join"], "is_done": False}})
    with pytest.raises(UsageError, match="was being joined from its pipeline stages"):
        opened(tmp_path, 0)


@pytest.mark.parametrize("first", [0, 1])
def test_an_evaluation_asks_before_it_replaces(tmp_path: Path, first: int) -> None:
    Engine(tmp_path / "t").close()
    options: dict[str, Any] = {"settings": {"is_evaluation": True}}
    for stage in (first, 1 - first):
        with pytest.raises(UsageError, match="already holds a trace"):
            opened(tmp_path / "t", stage, **options)
        with pytest.raises(UsageError, match="Nothing to resume"):
            opened(tmp_path / "new", stage, resume=True, **options)
    serve_all([opened(tmp_path / "t", n, force=True, **options) for n in (first, 1 - first)], "b")
    assert open_trace(tmp_path / "t").sequences["request_id"].to_pylist() == ["b"]


def test_what_cannot_be_joined_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="MOE_PROBE_MAX_GB cannot be kept with pipeline stages"):
        opened(tmp_path, 0, settings={"max_bytes": 1 << 30})
    counts = {"capture": Capture.COUNTS, "is_evaluation": True}
    with pytest.raises(UsageError, match="counts by pipeline stages cannot be resumed"):
        opened(tmp_path, 0, settings=counts, resume=True)
    TraceWriter(tmp_path / "t", layers=LAYERS[:1]).close()
    with pytest.raises(UsageError, match=r"Cannot continue .* which has not .*'layer': 2"):
        opened(tmp_path / "t", 1)


def test_counts_are_joined_from_rows_that_do_not_stay(tmp_path: Path) -> None:
    counts = {"capture": Capture.COUNTS}
    serve_all([opened(tmp_path, stage, settings=counts) for stage in (0, 1)], "abc")
    assert open_trace(tmp_path).capture is Capture.COUNTS
    assert num_counted(tmp_path) == 4 + 5 + 2
    assert not list(tmp_path.rglob("routing/*"))


def test_a_stage_that_refuses_says_so_beside_one_that_records(tmp_path: Path) -> None:
    session = opened(tmp_path, 0)
    write_refusal(tmp_path, "layer 2 cannot be read", dict(FACTS))
    assert read_run(TraceFiles(tmp_path))["reason"] == "layer 2 cannot be read"
    serve(session, "a", PROMPTS["a"])
    session.close(None, {})
    trace = open_trace(tmp_path)
    assert (trace.run["status"], trace.run["engine"]) == ("refused", {"instance": "abc"})
    # What the other stage has is still there.
    assert len(list((tmp_path / "stages" / "0" / "routing").iterdir())) == 1


def test_a_lone_worker_refuses_as_ever(tmp_path: Path) -> None:
    write_refusal(tmp_path / "t", "no routers", dict(FACTS))
    run = open_trace(tmp_path / "t").run
    assert (run["status"], run["reason"], run["layers"]) == ("refused", "no routers", [])
    # A trace with rows is not given up for that.
    Engine(tmp_path / "full").close()
    write_refusal(tmp_path / "full", "no routers", dict(FACTS))
    assert open_trace(tmp_path / "full").run["status"] == "complete"


def test_stages_missing_on_this_machine_are_asked_for(tmp_path: Path) -> None:
    serve_all([opened(tmp_path, 0)], "a")
    with pytest.raises(TraceError, match="1 of the model's 2 MoE layers"):
        open_trace(tmp_path)
