"""`record --backend vllm`: the real lm-eval, the real engine, and the same trace as transformers.

vLLM runs every choice as a prompt of its own, to its last token; transformers runs what the choices
share once, without the last token. The rule `question` counts what both have in common.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe_probe.analysis.reading.rules import Rule
from moe_probe.analysis.scan import count
from moe_probe.errors import CaptureError, UsageError
from moe_probe.trace import Trace, open_trace
from tests.evaluation.record_helpers import record
from tests.trace.recordings import stored_passes
from tests.vllm.engines import ONE_PROCESS
from tests.vllm.evaluated import (
    counted_columns,
    experts_table,
    moe_probe,
    record_with_vllm,
)
from tests.vllm.recorded import assert_as_reference, sequences_of
from tests.vllm.reference import Reference
from tests.vllm.zoo import ZOO

MMLU = Path(__file__).parents[3] / "shared" / "data" / "mmlu"


def choices(trace: Trace) -> dict[tuple[str, int, int], float]:
    """Log-likelihood by task, document and choice."""
    return {
        (row["task"], row["doc_id"], choice): loglik
        for row in trace.sequences.to_pylist()
        for choice, loglik in zip(row["choices"], row["choice_logliks"], strict=True)
    }


def assert_same_experts(folder: Path, num_questions: int, *, is_original: bool) -> None:
    """Compare the traces `hf` and `vllm` of MMLU in a folder, table and scores."""
    names = ("hf", "vllm")
    traces = {name: open_trace(folder / name) for name in names}
    tables = [experts_table(folder / name, folder / f"report-{name}") for name in names]
    assert len(tables[0].splitlines()) == 1 + 4 * 32
    assert counted_columns(tables[0]) == counted_columns(tables[1])
    # The subjects of the original MMLU, without examples, share no token after its header.
    if is_original:
        assert tables[0] == tables[1]
    scores = [choices(trace) for trace in traces.values()]
    assert scores[0].keys() == scores[1].keys()
    np.testing.assert_allclose(
        list(scores[0].values()), [scores[1][name] for name in scores[0]], atol=1e-4
    )
    rows = traces["vllm"].sequences.to_pylist()
    assert len(rows) == num_questions * 4
    # Of a question's four prompts one stores the context, and the others their last token.
    stored = [row["num_tokens"] - row["prefix_tokens"] for row in rows]
    assert sorted(stored)[: num_questions * 3] == [1] * (num_questions * 3)
    assert {row["multiplicity"] for row in rows} == {1}
    books = traces["vllm"].run["completeness"]
    assert books["expected_tokens"] == sum(row["num_tokens"] for row in rows)
    assert traces["vllm"].run["status"] == "complete"


def test_both_backends_give_the_same_table_of_experts(tmp_path: Path) -> None:
    common: list[object] = ["record", "--model", "tiny-moe", "--task", "mmlu_sample", "--limit", 1]
    common += ["--num-fewshot", 0, "--capture", "weights"]
    arguments = {**ZOO["tiny_moe"].arguments, "enforce_eager": True, "max_model_len": 2048}
    runs: dict[str, list[object]] = {
        "hf": ["--batch-size", 16],
        "vllm": ["--model-args", json.dumps(arguments)],
    }
    for backend, options in runs.items():
        run = moe_probe(*common, "--backend", backend, *options, "-o", tmp_path / backend)
        assert run.returncode == 0, run.stderr[-3000:]
        # Results only: what the engine's processes say is on the other stream.
        assert run.stdout.startswith("|")
        assert "INFO" not in run.stdout
        assert "MISSING" not in run.stdout
    assert_same_experts(tmp_path, 57, is_original=False)


def test_both_backends_give_the_same_table_of_experts_of_the_original_mmlu(tmp_path: Path) -> None:
    if not MMLU.is_dir():
        pytest.skip("the original MMLU files are not beside the checkout")
    moe_probe("mmlu", "prepare", "--src", MMLU, "--out", tmp_path / "copy")
    options: dict[str, Any] = {
        "mmlu_dir": tmp_path / "copy",
        "limit": 2,
        "num_fewshot": 0,
        "capture": "weights",
    }
    arguments = {**ZOO["tiny_moe"].arguments, "max_model_len": 2048}
    own = record_with_vllm("tiny-moe", ["mmlu"], tmp_path / "vllm", model_args=arguments, **options)
    other = record("tiny-moe", ["mmlu"], tmp_path / "hf", batch_size="16", **options)
    assert own.completeness.shortfall == other.completeness.shortfall == 0
    assert_same_experts(tmp_path, 57 * 2, is_original=True)


@pytest.fixture(scope="module")
def checkpoint_and_tasks(checkpoint: Callable[[str], Path], toy_tasks: Path) -> tuple[Path, Path]:
    return checkpoint("qwen3_moe"), toy_tasks


ALL_KINDS = ["toy_alpha", "toy_words", "toy_generate", "toy_stops", "toy_rolling"]


def test_every_kind_of_request_is_recorded(
    checkpoint_and_tasks: tuple[Path, Path],
    reference: Callable[[str], Reference],
    tmp_path: Path,
) -> None:
    model, tasks = checkpoint_and_tasks
    # With a stop string that this model does write.
    shutil.copytree(tasks, tmp_path / "tasks")
    generate = (tasks / "toy_generate.yaml").read_text()
    stops = generate.replace("task: toy_generate", "task: toy_stops").replace('"e"', '"g", "p"')
    (tmp_path / "tasks" / "toy_stops.yaml").write_text(stops)
    arguments = {"include_path": tmp_path / "tasks", "capture": "weights"}
    result = record_with_vllm(model, ALL_KINDS, tmp_path / "vllm", **arguments)
    assert result.completeness.shortfall == 0
    rows = sequences_of(tmp_path / "vllm")
    for row in rows:
        assert_as_reference(row, row["token_ids"].tolist(), reference("qwen3_moe"))
    assert {row["kind"] for row in rows} == {
        "loglikelihood",
        "loglikelihood_rolling",
        "generate_until",
    }
    # vLLM keeps two tokens of its length for itself when it cuts running text into windows.
    other = record(model, ALL_KINDS, tmp_path / "hf", model_args={"max_length": 510}, **arguments)
    assert {name: task["alias"] for name, task in result.results["results"].items()} == {
        name: task["alias"] for name, task in other.results["results"].items()
    }
    hf = open_trace(tmp_path / "hf").sequences.to_pylist()
    # The generated tokens that are fed back end at the stop string in both. What tokens mean as
    # text differs, since most of these bytes are none.
    lengths = [
        {
            (row["task"], row["doc_id"]): row["num_tokens"] - row["choice_end"]
            for row in each
            if row["kind"] == "generate_until"
        }
        for each in (rows, hf)
    ]
    assert lengths[0] == lengths[1]
    assert len(lengths[0]) == 16
    assert len(set(lengths[0].values())) > 3
    # Running text is recorded window by window, in another order: idle runs are not compared.
    counts = [count(open_trace(tmp_path / name), Rule.QUESTION) for name in ("vllm", "hf")]
    for own_layer, layer in zip(*(each.by_layer() for each in counts), strict=True):
        assert own_layer.counts_N.tolist() == layer.counts_N.tolist()


def test_an_interrupted_recording_is_resumed_without_running_anything_twice(
    checkpoint_and_tasks: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tasks = checkpoint_and_tasks
    arguments = {"include_path": tasks, "batch_size": "8"}
    names = ["toy_alpha", "toy_generate"]
    record_with_vllm(model, names, tmp_path / "whole", **arguments)

    from moe_probe.evaluation.engines import vllm_model as module

    generate = module.MoeProbeVLLM._generate_tagged
    calls = []

    def interrupted(
        self: object, prompts: list[object], *rest: object, **options: object
    ) -> object:
        calls.append(len(prompts))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return generate(self, prompts, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(module.MoeProbeVLLM, "_generate_tagged", interrupted)
    with pytest.raises(KeyboardInterrupt):
        record_with_vllm(model, names, tmp_path / "t", **arguments)
    begun = open_trace(tmp_path / "t")
    assert begun.run["status"] == "interrupted"
    assert begun.sequences.num_rows == 24

    calls.append(0)
    record_with_vllm(model, names, tmp_path / "t", resume=True, **arguments)
    resumed, whole = open_trace(tmp_path / "t"), open_trace(tmp_path / "whole")
    assert sum(calls[5:]) == whole.sequences.num_rows - 24
    # Forward passes are numbered on, so that none of them is taken for one of before.
    before, passes = stored_passes(begun), stored_passes(resumed)
    assert passes.items() > before.items()
    assert min(passes[key] for key in passes.keys() - before.keys()) == max(before.values()) + 1
    assert resumed.run["completeness"]["shortfall"] == 0
    assert resumed.sequences.num_rows == whole.sequences.num_rows
    for name in ("count", "unique_count"):
        totals = [
            trace.counts.to_pandas().groupby(["layer", "expert", "subject", "segment"])[name].sum()
            for trace in (resumed, whole)
        ]
        assert totals[0].equals(totals[1])


def test_counts_alone_are_those_of_the_rows(
    checkpoint_and_tasks: tuple[Path, Path], tmp_path: Path
) -> None:
    model, tasks = checkpoint_and_tasks
    totals = []
    for capture in ("ids", "counts"):
        path = tmp_path / capture
        record_with_vllm(model, ["toy_alpha"], path, include_path=tasks, capture=capture)
        trace = open_trace(path)
        assert trace.run["status"] == "complete"
        counts = trace.counts.to_pandas().groupby(["layer", "expert", "subject", "segment"])
        totals.append(counts[["count", "unique_count"]].sum())
    assert totals[0].equals(totals[1])
    assert not list((tmp_path / "counts" / "routing").glob("*"))


def test_what_cannot_be_recorded_is_refused(
    checkpoint_and_tasks: tuple[Path, Path], tmp_path: Path
) -> None:
    model, tasks = checkpoint_and_tasks
    arguments = {"include_path": tasks}
    for options, message in (
        ({"data_parallel_size": 2}, "data_parallel_size makes lm-eval run separate engines"),
        ({"truncation_side": "right"}, "truncation_side=right cannot be recorded"),
    ):
        with pytest.raises(UsageError, match=message):
            record_with_vllm(model, ["toy_alpha"], tmp_path / "t", model_args=options, **arguments)
    assert not (tmp_path / "t").exists()


def test_a_model_that_the_plugin_cannot_read_is_refused_and_run_json_says_why(
    checkpoint_and_tasks: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from moe_probe.hooks.vllm import binding

    model, tasks = checkpoint_and_tasks
    monkeypatch.setattr(binding, "expected_moe_layers", lambda config: [0, 1, 2, 3])
    with pytest.raises(CaptureError, match=r"experts in layers \[1\] too"):
        record_with_vllm(model, ["toy_alpha"], tmp_path / "t", include_path=tasks)
    run = json.loads((tmp_path / "t" / "run.json").read_text())
    assert run["status"] == "refused"
    assert "experts in layers [1] too" in run["reason"]


def test_an_engine_without_the_plugin_is_noticed_before_the_evaluation(
    checkpoint_and_tasks: tuple[Path, Path], tmp_path: Path
) -> None:
    model, tasks = checkpoint_and_tasks
    run = moe_probe(
        *("record", "--backend", "vllm", "--model", model, "--task", "toy_alpha"),
        *("--include-path", tasks, "-o", tmp_path / "t"),
        *("--model-args", "enforce_eager=True,max_model_len=512"),
        environment={**ONE_PROCESS, "VLLM_PLUGINS": "another"},
    )
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1].startswith(
        "Error: The engine runs without moe-probe: its plugin was not loaded."
    )
    assert run.stdout == ""
