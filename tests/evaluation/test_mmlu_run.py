"""All 57 subjects with the bundled model: every token recounted from lm-eval's own samples."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from moe_probe.evaluation.engines import backend_of
from moe_probe.evaluation.mmlu import prepare
from moe_probe.evaluation.plan import RecordOptions, make_plan
from moe_probe.evaluation.run import evaluate, record_evaluation
from moe_probe.models import resolve_model
from moe_probe.trace import open_trace

MMLU = Path(__file__).parents[3] / "shared" / "data" / "mmlu"


@pytest.mark.parametrize(("source", "num_fewshot"), [("sample", 5), ("mmlu", 0)])
def test_tokens_per_subject_are_those_lm_eval_ran(
    tmp_path: Path, source: str, num_fewshot: int
) -> None:
    mmlu_dir, task = None, "mmlu_sample"
    if source == "mmlu":
        if not MMLU.is_dir():
            pytest.skip("the original MMLU files are not beside the checkout")
        mmlu_dir, task = tmp_path / "copy", "mmlu"
        prepare(MMLU, mmlu_dir)
    options = RecordOptions(
        model=resolve_model("tiny-moe"),
        tasks=[task],
        output=tmp_path / "trace",
        num_fewshot=num_fewshot,
        limit=1,
        batch_size="8",
        dtype="float32",
        mmlu_dir=mmlu_dir,
        quiet=True,
    )
    plan = make_plan(options)
    lm, items = backend_of(options).load(options), plan.tasks.load()
    result = record_evaluation(plan, lm, items)
    trace = open_trace(result.path)

    assert result.completeness.shortfall == 0
    tokenizer = AutoTokenizer.from_pretrained(options.model.identifier)
    samples = evaluate(plan, lm, items)["samples"]
    expected: Counter[str] = Counter()
    logliks = {}
    for name, documents in samples.items():
        for document in documents:
            rows = {
                tuple(tokenizer.encode(context + choice)[:-1])
                for context, choice in document["arguments"]
            }
            # The four choices are one token each, so one row answers all of them.
            assert len(rows) == 1
            expected[name.removeprefix("mmlu_")] += len(rows.pop())
            logliks[name] = [response[0][0] for response in document["resps"]]
    assert len(expected) == 57
    counts = trace.counts.to_pandas().groupby(["layer", "subject"])["count"].sum()
    for layer, spec in trace.layers.items():
        assert (counts[layer] / spec.top_k).to_dict() == dict(expected)
    recorded = {row["task"]: row["choice_logliks"] for row in trace.sequences.to_pylist()}
    # Bit for bit, though the second evaluation ran without hooks.
    assert recorded == logliks
    areas = Counter(row["area"] for row in trace.sequences.to_pylist())
    assert areas == {"stem": 19, "humanities": 13, "social sciences": 12, "other": 13}
