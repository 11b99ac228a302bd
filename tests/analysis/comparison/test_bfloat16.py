"""The bundled model in bf16 against fp32: disagreements sit at small margins.

transformers records no margins, so the model is run once more in fp32 for them.

Shape suffixes: T tokens, K slots, N experts of a layer, G groups of experts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe_probe.analysis.comparison import CompareSettings, Comparison, compare
from moe_probe.analysis.reading.rules import Rule
from moe_probe.models import BUNDLED, resolve_model
from moe_probe.trace import LayerSpec, Trace, TraceWriter, open_trace

torch = pytest.importorskip("torch")
pytest.importorskip("lm_eval")

NUM_GROUPS, GROUPS_PER_TOKEN, TOP_K = 4, 2, 4


def record(dtype: str, output: Path) -> Trace:
    from moe_probe.evaluation.plan import RecordOptions, make_plan
    from moe_probe.evaluation.run import run_recording

    options = RecordOptions(
        model=resolve_model("tiny-moe"),
        tasks=["mmlu_sample"],
        output=output,
        dtype=dtype,
        num_fewshot=0,
        limit=1,
        batch_size="8",
        quiet=True,
    )
    run_recording(make_plan(options))
    return open_trace(output)


def selection_margin(scores_TN: np.ndarray) -> np.ndarray:
    """How far a token is from choosing otherwise: an expert in its groups, or a group."""
    groups_TGN = scores_TN.reshape(len(scores_TN), NUM_GROUPS, -1)
    best_TG = np.sort(groups_TGN, axis=2)[:, :, -2:].sum(axis=2)
    order_TG = np.argsort(-best_TG, axis=1)
    ranked_TG = -np.sort(-best_TG, axis=1)
    between_T = ranked_TG[:, GROUPS_PER_TOKEN - 1] - ranked_TG[:, GROUPS_PER_TOKEN]
    chosen_TG1 = order_TG[:, :GROUPS_PER_TOKEN, None]
    inside_TN = np.take_along_axis(groups_TGN, chosen_TG1, axis=1).reshape(len(scores_TN), -1)
    inside_TN = -np.sort(-inside_TN, axis=1)
    return np.asarray(np.minimum(inside_TN[:, TOP_K - 1] - inside_TN[:, TOP_K], between_T))


def with_margins(trace: Trace, path: Path) -> Trace:
    """Write the same sequences again, with the margins of the model in fp32."""
    from transformers import AutoModelForCausalLM

    from tests.evaluation.record_helpers import rows_of

    model: Any = AutoModelForCausalLM.from_pretrained(BUNDLED["tiny-moe"], dtype=torch.float32)
    margins: list[np.ndarray] = []

    def note(gate: Any, _: Any, output: Any) -> None:
        scores = output[0].sigmoid() + gate.e_score_correction_bias
        margins.append(selection_margin(scores.numpy()))

    for layer in trace.layers:
        model.model.layers[layer].mlp.gate.register_forward_hook(note)
    specs = [
        LayerSpec(layer=n, num_experts=s.num_experts, top_k=s.top_k, scalars=True)
        for n, s in trace.layers.items()
    ]
    with (
        torch.inference_mode(),
        TraceWriter(path, layers=specs, capture="weights", run=trace.run) as writer,
    ):
        for row in trace.sequences.to_pylist():
            tokens = token_ids(trace, row["sequence_id"])
            margins.clear()
            model(input_ids=torch.tensor(tokens[None], dtype=torch.long))
            ids_TS = rows_of(trace, row["sequence_id"])
            ids = np.split(ids_TS, len(specs), axis=1)
            zero_T = np.zeros(len(tokens))
            writer.add(
                ids,
                topk_weights=[np.ones(each.shape) for each in ids],
                router_scalars=[np.stack([zero_T, zero_T, m], axis=1) for m in margins],
                token_ids=tokens,
                subject=row["subject"],
                task=row["task"],
                doc_id=row["doc_id"],
            )
    return open_trace(path)


def token_ids(trace: Trace, sequence: int) -> np.ndarray:
    """Vocabulary ids of a sequence, shared ones from whoever stores them."""
    facts = {row["sequence_id"]: row for row in trace.sequences.to_pylist()}
    stored = {
        (int(s), int(p)): int(t)
        for block in trace.scan([])
        for s, p, t in zip(block.sequence_id_T, block.position_T, block.token_id_T, strict=True)
    }
    tokens, owner = [], sequence
    for position in range(facts[sequence]["num_tokens"] - 1, -1, -1):
        while position < facts[owner]["prefix_tokens"]:
            owner = facts[owner]["prefix_id"]
        tokens.append(stored[owner, position])
    return np.array(tokens[::-1])


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    folder = tmp_path_factory.mktemp("dtypes")
    threads = torch.get_num_threads()
    # Threads that wait for each other take most of the time of so small a model.
    torch.set_num_threads(1)
    try:
        traces = {dtype: record(dtype, folder / dtype) for dtype in ("float32", "bfloat16")}
        reference = with_margins(traces["float32"], folder / "reference")
    finally:
        torch.set_num_threads(threads)
    return compare([reference, traces["bfloat16"], traces["float32"]], CompareSettings(Rule.RAW))


def of_trace(found: Comparison, table: str, trace: str) -> Any:
    whole = found.table(table)
    return whole[whole["trace"] == trace]


def test_few_tokens_differ_and_least_in_the_first_layer(found: Comparison) -> None:
    table = of_trace(found, "agreement", "bfloat16")
    assert (table["same_set"] > 0.95).all()
    assert (table["same_set"] < 1).all()
    assert table["same_set"].idxmax() == table.index[0]
    assert (table["overlap"] > table["same_set"]).all()
    loads = of_trace(found, "layers", "bfloat16")
    assert (loads["spearman"] > 0.99).all()
    assert (loads["divergence_bits"] < 1e-4).all()


def test_disagreements_sit_at_small_margins(found: Comparison) -> None:
    table = of_trace(found, "margins", "bfloat16")
    assert table["margins_of"].unique().tolist() == ["reference"]
    # In the first layer nothing but this layer's rounding counts; later ones get other inputs.
    first = table.iloc[0]
    assert first["different_q95"] < first["same_q05"]
    assert first["smaller"] > 0.97
    assert (table["smaller"] > 0.8).all()
    assert (table["different_q50"] < table["same_q25"] / 2).all()
    bins = of_trace(found, "margin_bins", "bfloat16")
    bins = bins.assign(number=bins["different"] * bins["tokens"])
    small, large = bins[bins["margin_high"] < 0.001], bins[bins["margin_low"] > 0.1]
    assert small["number"].sum() / small["tokens"].sum() > 0.05
    assert large["tokens"].sum() > 1000
    assert not large["number"].any()


def test_disagreements_lose_the_last_slots(found: Comparison) -> None:
    table = of_trace(found, "lost_slots", "bfloat16")
    lost = table.groupby("slot")["lost"].sum()
    assert lost[4] > lost[3] > lost[1]
    assert lost[4] > 0.4 * lost.sum()


def test_the_same_dtype_agrees_in_everything(found: Comparison) -> None:
    table = of_trace(found, "agreement", "float32")
    assert (table[["overlap", "same_set", "first_choice"]] == 1).all(axis=None)
    assert not of_trace(found, "experts", "float32")["difference"].any()
