"""The bundled trace: sound, small, and what the bundled model does on the bundled sample."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from moe_probe.analysis import Rule, check_trace, count
from moe_probe.analysis.quality import failures
from moe_probe.bundled import SAMPLE_TRACE
from moe_probe.models import BUNDLED
from moe_probe.trace import Trace, open_trace

NUM_RUN = 3


@pytest.fixture(scope="module")
def trace() -> Trace:
    return open_trace(SAMPLE_TRACE)


def test_trace_is_sound_and_small(trace: Trace) -> None:
    checks = check_trace(trace)
    assert failures(checks) == []
    assert next(check.status for check in checks if check.check == "Q0") == "pass"
    assert trace.run["status"] == "complete"
    files = [path for path in SAMPLE_TRACE.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 700_000
    assert {path.suffix for path in files} == {".json", ".parquet"}


def test_trace_names_no_place_of_the_machine_it_was_made_on(trace: Trace) -> None:
    text = json.dumps(trace.run)
    assert str(Path.home()) not in text
    assert not {"hostname", "user", "path", "output_path"} & set(trace.run)
    assert (trace.run["model"], trace.run["options"]["tasks"]) == ("tiny-moe", ["mmlu_sample"])


def test_trace_has_the_whole_sample(trace: Trace) -> None:
    folder = BUNDLED["tiny-moe"].parent / "mmlu_sample" / "test"
    subjects = {path.stem.removesuffix("_test") for path in folder.glob("*.csv")}
    documents = Counter(trace.sequences["subject"].to_pylist())
    assert documents == dict.fromkeys(subjects, 4)
    assert count(trace, Rule.UNIQUE).layer(1).tokens == 48_799, "as its docstring says"


def test_model_still_routes_as_the_trace_says(trace: Trace) -> None:
    """Run some documents' tokens again; another machine's rounding may flip a near tie."""
    pytest.importorskip("transformers")
    import torch
    from transformers import AutoModelForCausalLM

    from moe_probe.hooks.step_buffer import StepRows
    from moe_probe.hooks.transformers import TransformersCapture
    from tests.hooks.recorded import unpack

    model = AutoModelForCausalLM.from_pretrained(BUNDLED["tiny-moe"], dtype=torch.float32).eval()
    (block,) = trace.scan(list(trace.layers))
    whole = [row for row in trace.sequences.to_pylist() if row["prefix_tokens"] == 0]
    steps: list[StepRows] = []
    with TransformersCapture(model) as capture, torch.no_grad():
        capture.on_step = steps.append
        rows = [block.sequence_id_T == row["sequence_id"] for row in whole[:NUM_RUN]]
        for is_own_T in rows:
            model(input_ids=torch.tensor(block.token_id_T[is_own_T])[None])
    for is_own_T, step in zip(rows, steps, strict=True):
        again = unpack(step, capture.layers)
        assert int(is_own_T.sum()) > 100
        for layer in trace.layers:
            is_same_T = (again.ids[layer] == block.topk_ids(layer)[is_own_T]).all(axis=1)
            assert np.mean(is_same_T) > 0.98
