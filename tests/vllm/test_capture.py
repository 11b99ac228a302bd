"""What the plugin records is what transformers decides, for every architecture of the zoo."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from moe_probe.trace import open_trace
from tests.vllm.engines import generate
from tests.vllm.recorded import assert_as_reference, call, recorded_engine, sequences_of
from tests.vllm.reference import Reference
from tests.vllm.zoo import ZOO, prompts_of

SIGMOID = ("deepseek_v3", "tiny_moe")


def scalars(logits_TN: np.ndarray, top_k: int, *, is_sigmoid: bool) -> np.ndarray:
    """Logsumexp, entropy and margin of each token's logits, from their definitions."""
    wide_TN = logits_TN.astype(np.float64)
    scores_TN = 1 / (1 + np.exp(-wide_TN)) if is_sigmoid else np.exp(wide_TN)
    p_TN = scores_TN / scores_TN.sum(axis=1, keepdims=True)
    ranked_TN = -np.sort(-wide_TN, axis=1)
    return np.stack(
        [
            np.log(np.exp(wide_TN).sum(axis=1)),
            -(p_TN * np.log(p_TN)).sum(axis=1),
            ranked_TN[:, top_k - 1] - ranked_TN[:, top_k],
        ],
        axis=1,
    )


@pytest.mark.parametrize("name", ZOO)
def test_recorded_rows_are_the_reference(
    name: str,
    checkpoint: Callable[[str], Path],
    reference: Callable[[str], Reference],
    tmp_path: Path,
) -> None:
    entry, prompts = ZOO[name], prompts_of(ZOO[name])
    with recorded_engine(checkpoint(name), tmp_path / "t", **entry.arguments) as llm:
        answers = generate(llm, prompts, 6)
    rows = sorted(sequences_of(tmp_path / "t"), key=lambda row: int(row["request_id"]))
    assert len(rows) == len(prompts)
    for row, prompt, answer in zip(rows, prompts, answers, strict=True):
        assert row["num_tokens"] == len(prompt) + 5
        assert row["choice_end"] == len(prompt)
        tokens = [*prompt, *answer["tokens"][:-1]]
        assert_as_reference(row, tokens, reference(name))
        (routing,) = reference(name).routing([tokens])
        for layer, logits_TN in routing.logits.items():
            expected_T3 = scalars(logits_TN, entry.top_k, is_sigmoid=name in SIGMOID)
            np.testing.assert_allclose(row["scalars"][layer], expected_T3, rtol=2e-3, atol=2e-4)


def test_a_size_limit_ends_the_rows_and_not_the_counts(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    limit = {"MOE_PROBE_MAX_GB": "0.000001"}
    prompts = prompts_of(ZOO["qwen3_moe"])
    with recorded_engine(
        checkpoint("qwen3_moe"), tmp_path / "t", capture="ids", environment=limit
    ) as llm:
        for _ in range(3):
            generate(llm, prompts, 4)
            status = call(llm, "flush")
        assert status["rows_are_kept"] is False
    trace = open_trace(tmp_path / "t")
    rows = trace.sequences.to_pylist()
    assert [row["rows_kept"] for row in rows] == [True] * 3 + [False] * 6
    not_kept = sum(row["num_tokens"] for row in rows[3:])
    assert trace.run["rows_not_kept"] == not_kept
    assert sum(len(block) for block in trace.scan()) == not_kept / 2
    counts = trace.counts.to_pandas().groupby("layer")["count"].sum()
    assert counts.to_dict() == dict.fromkeys(trace.layers, 4 * 3 * not_kept // 2)
    assert trace.run["status"] == "complete"


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("MOE_PROBE_CAPTURE", "everything", "MOE_PROBE_CAPTURE is 'everything'"),
        ("MOE_PROBE_MAX_GB", "much", "MOE_PROBE_MAX_GB is 'much', not a number"),
    ],
)
def test_a_setting_that_means_nothing_records_nothing_and_the_engine_runs(
    checkpoint: Callable[[str], Path], tmp_path: Path, variable: str, value: str, message: str
) -> None:
    prompts = prompts_of(ZOO["qwen3_moe"])[:1]
    with recorded_engine(
        checkpoint("qwen3_moe"), tmp_path / "t", environment={variable: value}
    ) as llm:
        assert len(generate(llm, prompts, 4)[0]["tokens"]) == 4
        assert message in call(llm, "status")["error"]
    run = json.loads((tmp_path / "t" / "run.json").read_text())
    assert run["status"] == "refused"
    assert message in run["reason"]
