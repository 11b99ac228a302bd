"""`compare` of transformers and vLLM: the same prompts select the same experts in fp32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from moe_probe.analysis.comparison import TABLES, CompareSettings, compare
from moe_probe.analysis.reading.rules import Rule
from tests.evaluation.record_helpers import record
from tests.vllm.evaluated import moe_probe, record_with_vllm


def test_engines_agree_in_fp32_and_differ_at_small_margins_in_bf16(
    checkpoint: Callable[[str], Path], toy_tasks: Path, tmp_path: Path
) -> None:
    model, tasks = checkpoint("qwen3_moe"), ["toy_alpha", "toy_words", "toy_generate"]
    options = {"include_path": toy_tasks, "capture": "weights"}
    record_with_vllm(model, tasks, tmp_path / "vllm", **options)
    record(model, tasks, tmp_path / "hf", **options)
    names: list[object] = [argument for task in tasks for argument in ("--task", task)]
    run = moe_probe(
        *("record", "--model", model, *names, "--include-path", toy_tasks, "--dtype", "bfloat16"),
        *("--device", "cpu", "-o", tmp_path / "bf16"),
    )
    assert run.returncode == 0, run.stderr[-3000:]
    traces = [tmp_path / name for name in ("vllm", "hf", "bf16")]
    found = compare(traces, CompareSettings(Rule.QUESTION))

    tables: Any = {name: found.table(name).set_index("trace") for name in TABLES}
    facts, agreement = tables["traces"], tables["agreement"]
    # vLLM runs every choice, transformers what the choices share: all of that is compared.
    assert facts.loc["hf", "aligned_tokens"] == facts.loc["hf", "tokens"] > 500
    assert facts.loc["hf", "paired_documents"] == facts.loc["vllm", "documents"] > 20
    columns = ["overlap", "same_set", "first_choice", "rank_overlap"]
    assert (agreement.loc["hf", columns] == 1).all(axis=None)
    assert (agreement.loc["hf", "weight_difference"] < 1e-3).all()
    assert not tables["experts"].loc["hf", "difference"].any()

    assert (agreement.loc["bf16", "same_set"] < 1).any()
    margins = tables["margins"]
    assert (margins["margins_of"] == "vllm").all()
    known = margins.loc[["bf16"]].query("different_tokens > 0")
    assert (known["different_q50"] < known["same_q25"]).all()
    assert (known["smaller"] > 0.8).all()
