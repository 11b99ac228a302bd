"""Every check passes on a sound trace and finds the fault it is there for.

Shape suffixes: T tokens, K slots, L layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations, product
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.special import bdtrc
from scipy.stats import binom

from moe_probe.analysis.accumulators.counts import LayerCounts
from moe_probe.analysis.quality import Check, Status, check_trace
from moe_probe.analysis.quality.loads import _chance, expert_zero
from moe_probe.analysis.quality.rows import _chance_of_order, ordered_allowed
from moe_probe.errors import TraceError
from moe_probe.trace import LayerSpec, RowLayout, Trace, open_trace

NUM_LAYERS, NUM_TOKENS = 16, 200
LAYERS = [LayerSpec(layer=3 + i, num_experts=64, top_k=4) for i in range(NUM_LAYERS)]
COMPLETENESS: dict[str, Any] = {
    "expected_tokens": 400,
    "computed_tokens": 420,
    "stored_tokens": 300,
    "shared_tokens": 60,
    "padding_tokens": 20,
    "probe_tokens": 0,
    "unsampled_tokens": 40,
    "after_stop_tokens": 0,
    "layers": {str(spec.layer): 420 for spec in LAYERS},
    "shortfall": 0,
}
Fault = Callable[[np.ndarray], Any]


def random_ids(seed: int = 0) -> np.ndarray:
    """Return ids [L, T, K] of uniform distinct routing, in 16 bits so that faults fit."""
    score = np.random.default_rng(seed).random((NUM_LAYERS, NUM_TOKENS, 64))
    return np.argsort(score, axis=2)[:, :, :4].astype(np.int64)


def found(trace: Trace) -> dict[str, Check]:
    return {check.check: check for check in check_trace(trace)}


@pytest.fixture
def check_ids(new_trace: Any) -> Callable[..., dict[str, Check]]:
    """Write ids past the writer's validation and check the trace."""

    def run(ids_LTK: np.ndarray, **options: Any) -> dict[str, Check]:
        rows_TB = np.concatenate(list(ids_LTK.astype(np.uint8)), axis=1)
        assert rows_TB.shape[1] == RowLayout(tuple(LAYERS)).ids_bytes
        return found(new_trace(LAYERS, [rows_TB], **options))

    return run


def test_sound_trace_passes(check_ids: Any) -> None:
    run = {
        "completeness": COMPLETENESS,
        "model_facts": {"num_moe_layers": NUM_LAYERS, "top_k": 4},
        "prefix_check": {"sequences": 2, "rows": 100, "equal_rows": 100},
    }
    checks = check_ids(random_ids(), run=run, prompt_hash="a")
    assert list(checks) == [f"Q{number}" for number in range(22)]
    skipped = {name for name, check in checks.items() if check.status is Status.SKIP}
    assert skipped == {"Q9", "Q10", "Q11", "Q13", "Q16", "Q18"}
    assert {check.status for check in checks.values()} == {Status.PASS, Status.SKIP}
    assert checks["Q0"].value == "400 of 400 tokens, 0 missing"
    assert checks["Q12"].value == "1.00"
    assert checks["Q14"].value == "100.00% of 100 rows in 2 sequences"


def test_facts_that_are_absent_are_skipped(check_ids: Any) -> None:
    checks = check_ids(random_ids())
    skipped = [check.check for check in checks.values() if check.status is Status.SKIP]
    assert skipped == ["Q0", *(f"Q{n}" for n in (7, 8, 9, 10, 11, 12, 13, 14, 16, 18))]
    assert all(checks[number].reason for number in skipped)


def duplicate(ids_LTK: np.ndarray) -> None:
    ids_LTK[4, 9, 3] = ids_LTK[4, 9, 0]


def zero_fill(ids_LTK: np.ndarray) -> None:
    ids_LTK[:, 17] = 0


def leave_uninitialised(ids_LTK: np.ndarray) -> None:
    ids_LTK[2, :3] = np.arange(4)


def pad(ids_LTK: np.ndarray) -> None:
    ids_LTK[0, 5] = [255, 254, 253, 252]


def favour_expert_zero(ids_LTK: np.ndarray) -> None:
    # Zeros in one slot of 5 % of the rows that lack them: no row is odd by itself.
    for ids_TK in ids_LTK:
        rows = np.flatnonzero((ids_TK != 0).all(axis=1))[:10]
        ids_TK[rows, 2] = 0


@pytest.mark.parametrize(
    ("fault", "failing"),
    [
        (duplicate, {"Q1"}),
        (zero_fill, {"Q1", "Q2", "Q15"}),
        (leave_uninitialised, {"Q3"}),
        (pad, {"Q4", "Q5"}),
        (favour_expert_zero, {"Q15"}),
    ],
)
def test_planted_rows_are_found(check_ids: Any, fault: Fault, failing: set[str]) -> None:
    ids_LTK = random_ids()
    fault(ids_LTK)
    checks = check_ids(ids_LTK)
    assert {name for name, check in checks.items() if check.status is Status.FAIL} == failing


def test_value_names_rows_and_layer(check_ids: Any) -> None:
    ids_LTK = random_ids()
    duplicate(ids_LTK)
    assert check_ids(ids_LTK)["Q1"].value == "1 of 200 rows in layer 7, 1 over all layers"


def test_everything_zero_exceeds_what_counts_allow(check_ids: Any) -> None:
    checks = check_ids(np.zeros_like(random_ids()))
    assert checks["Q5"].status is Status.FAIL
    assert "an expert beyond 200 tokens" in checks["Q5"].value
    counts_only = check_ids(np.zeros_like(random_ids()), capture="counts")
    assert counts_only["Q5"].status is Status.FAIL
    assert counts_only["Q15"].status is Status.FAIL
    assert counts_only["Q1"].reason == "no per-token rows (--capture counts)"


def test_counts_level_trace_without_fault_passes(counts_run: Any) -> None:
    checks = found(counts_run.trace)
    assert {checks[name].status for name in ("Q5", "Q15")} == {Status.PASS}
    assert {checks[f"Q{n}"].status for n in (1, 2, 3, 4, 6)} == {Status.SKIP}


def test_shared_and_repeated_prompts_pass(run: Any) -> None:
    checks = found(run.trace)
    assert not [check for check in checks.values() if check.status is Status.FAIL]
    runs = sum(prompt["multiplicity"] for prompt in run.prompts)
    prompts = len({str(prompt["tokens"]) for prompt in run.prompts})
    assert checks["Q12"].value == f"{runs / prompts:.2f}"
    assert checks["Q12"].status is Status.NOTE


def test_dropped_rows_are_found(check_ids: Any, tmp_path: Any) -> None:
    check_ids(random_ids())
    (part,) = (tmp_path / "new" / "routing").glob("*.parquet")
    pq.write_table(pq.read_table(part).slice(0, NUM_TOKENS - 1), part)
    check = found(open_trace(tmp_path / "new"))
    assert check["Q6"].status is Status.FAIL
    assert check["Q6"].value == "0 of 1 sequences; sequence 0: 199 of 200 rows"
    assert "the counts tables differ from the rows" in check["Q5"].value


def test_doubled_rows_are_found(check_ids: Any, tmp_path: Any) -> None:
    check_ids(random_ids())
    (part,) = (tmp_path / "new" / "routing").glob("*.parquet")
    table = pq.read_table(part)
    # The last row is replaced by a second copy of the first: the number of rows is right.
    pq.write_table(pa.concat_tables([table.slice(0, 1), table.slice(0, NUM_TOKENS - 1)]), part)
    assert found(open_trace(tmp_path / "new"))["Q6"].status is Status.FAIL


def test_unsampled_sequences_need_no_rows(new_trace: Any) -> None:
    trace = new_trace(LAYERS, [np.empty((0, 64), np.uint8)], sampled=False, num_tokens=9)
    assert found(trace)["Q6"].status is Status.PASS
    trace = new_trace(LAYERS, [np.empty((0, 64), np.uint8)], num_tokens=9)
    assert found(trace)["Q6"].status is Status.FAIL


@pytest.mark.parametrize(
    "change",
    [
        {"shortfall": 1},
        {"stored_tokens": 299},
        {"expected_tokens": 401},
        {"layers": {**COMPLETENESS["layers"], "4": 419}},
    ],
)
def test_incomplete_recording_is_found(check_ids: Any, change: dict[str, Any]) -> None:
    check = check_ids(random_ids(), run={"completeness": {**COMPLETENESS, **change}})["Q0"]
    assert check.status is Status.FAIL
    if "layers" in change:
        assert check.value.endswith("other than 420 tokens in layers 4")


def test_other_number_of_layers_or_slots_is_found(check_ids: Any) -> None:
    checks = check_ids(random_ids(), run={"model_facts": {"num_moe_layers": 17, "top_k": 8}})
    assert checks["Q7"].status is Status.FAIL
    assert checks["Q8"].status is Status.FAIL
    assert checks["Q8"].value.startswith("4; layer 3: 4; layer 4: 4; layer 5: 4 and 13 more")
    assert checks["Q8"].expected == "8 in every layer"


@pytest.mark.parametrize(
    ("facts", "status", "value"),
    [
        ({"moe_layers": list(range(3, 19))}, Status.PASS, "16"),
        ({"moe_layers": list(range(2, 18))}, Status.FAIL, "16; without 2; also 18, none of them"),
        ({"moe_layers": list(range(3, 20))}, Status.FAIL, "16; without 19"),
        # The layer that predicts the next but one token comes after the last one.
        ({"num_moe_layers": 16, "num_layers": 19}, Status.PASS, "16"),
        ({"num_moe_layers": 16, "num_layers": 18}, Status.FAIL, "16; also 18, none of them"),
    ],
)
def test_layers_are_those_of_the_model(
    check_ids: Any, facts: dict[str, Any], status: Status, value: str
) -> None:
    check = check_ids(random_ids(), run={"model_facts": facts})["Q7"]
    assert (check.status, check.value) == (status, value)


def test_every_layer_has_the_experts_per_token_of_the_model(new_trace: Any) -> None:
    specs = [LayerSpec(layer=n, num_experts=8, top_k=k) for n, k in ((1, 2), (2, 4), (3, 4))]
    rows_TB = np.array([[0, 1, *range(4), *range(4, 8)], [5, 2, *range(3, 7), *range(4)]], np.uint8)
    for facts, status in (
        ({"top_k": 4}, Status.FAIL),
        ({"top_k": 4, "top_k_by_layer": [1, 2, 4, 4]}, Status.PASS),
        ({"top_k": 4, "top_k_by_layer": [1, 4, 2, 4]}, Status.FAIL),
    ):
        check = found(new_trace(specs, [rows_TB], run={"model_facts": facts}))["Q8"]
        assert check.status is status, facts
    assert check.value == "2, 4; layer 1: 2; layer 2: 4"


def loads(name: int, counts_N: list[int]) -> LayerCounts:
    spec = LayerSpec(layer=name, num_experts=len(counts_N), top_k=1)
    return LayerCounts(spec, np.array(counts_N), sum(counts_N))


@pytest.mark.parametrize(
    ("layers", "factor", "status"),
    [(1, 15, "note"), (2, 15, "note"), (4, 15, "fail"), (8, 15, "fail"), (8, 1.2, "fail")],
)
def test_expert_zero_stands_out_in_few_layers(layers: int, factor: float, status: str) -> None:
    rng = np.random.default_rng(layers)
    made = []
    for number in range(layers):
        counts_N = rng.integers(900, 1100, 64)
        counts_N[0] = factor * 1100
        made.append(loads(number, counts_N.tolist()))
    assert expert_zero(made).status == status
    fair = [loads(n, rng.permutation(np.arange(900, 964)).tolist()) for n in range(layers)]
    assert expert_zero(fair).status == Status.PASS


@pytest.mark.parametrize(
    ("num_experts", "zero", "others", "status"),
    [
        (4, 1, 0, "pass"),  # one layer in four
        (16, 1, 0, "pass"),
        (64, 1, 0, "note"),  # one in 64
        (64, 1, 3, "pass"),  # one of four layers: 6 %
        (64, 2, 3, "note"),
    ],
)
def test_expert_zero_alone_is_noted_where_chance_is_below_5_percent(
    num_experts: int, zero: int, others: int, status: str
) -> None:
    """Expert 0, or the last one, has four times the load of any other."""
    made = [
        loads(n, np.roll([4000, *range(900, 899 + num_experts)], 0 if n < zero else -1).tolist())
        for n in range(zero + others)
    ]
    made += [loads(n, list(range(900, 900 + num_experts))) for n in range(5, 10)]
    chance = binom.sf(zero - 1, zero + others, 1 / num_experts)
    assert (chance < 0.05) == (status == "note")
    assert expert_zero(made).status == status


def test_chance_of_expert_zero_is_that_of_all_choices() -> None:
    """One expert of each of four layers, ties included: as large a sum of ranks in 1 of 700."""
    by_layer = [[9, 1, 2, 5, 5], [7, 7, 1, 0, 7], [4, 4, 1, 2, 3], [8, 1, 2, 3, 4]]
    rank_LN = [
        [sum(b < a for b in counts) + sum(b == a for b in counts) / 2 for a in counts]
        for counts in by_layer
    ]
    sums = [sum(chosen) for chosen in product(*rank_LN)]
    exact = sum(total >= sum(rank_N[0] for rank_N in rank_LN) for total in sums) / len(sums)
    doubled = [np.array([round(2 * rank) for rank in rank_N]) for rank_N in rank_LN]
    assert _chance(doubled) == pytest.approx(exact)
    assert exact > 1 / 700
    # Were expert 0 the busiest in all of them, that would be 1 in 5^4: nothing to note.
    assert expert_zero(loads(n, c) for n, c in enumerate(by_layer)).status == Status.SKIP
    by_layer.append([1, 2, 3, 4, 5])
    assert expert_zero(loads(n, c) for n, c in enumerate(by_layer)).status == Status.PASS


def test_prefix_that_is_routed_otherwise_is_found(check_ids: Any) -> None:
    for equal, status in ((99, Status.PASS), (98, Status.FAIL)):
        run = {"prefix_check": {"sequences": 1, "rows": 100, "equal_rows": equal}}
        assert check_ids(random_ids(), run=run)["Q14"].status is status


def test_damaged_run_facts_are_an_error(check_ids: Any) -> None:
    with pytest.raises(TraceError, match=r"run\.json lacks expected_tokens"):
        check_ids(random_ids(), run={"completeness": {"shortfall": 0}})
    with pytest.raises(TraceError, match=r"layers in run\.json is 3"):
        check_ids(random_ids(), run={"completeness": {**COMPLETENESS, "layers": 3}})


def test_one_slot_makes_zero_rows_normal(new_trace: Any) -> None:
    spec = LayerSpec(layer=0, num_experts=4, top_k=1)
    checks = found(new_trace([spec], [np.array([[0], [0], [1]], np.uint8)]))
    assert [checks[f"Q{n}"].status for n in (1, 2, 3, 4)] == ["pass", "skip", "skip", "pass"]


def test_few_experts_make_ordered_rows_normal(new_trace: Any) -> None:
    spec = LayerSpec(layer=0, num_experts=4, top_k=2)
    checks = found(new_trace([spec], [np.array([[0, 1], [2, 3]], np.uint8)]))
    assert (checks["Q2"].status, checks["Q3"].status) == ("pass", "skip")
    assert (
        checks["Q3"].reason
        == "such rows are normal with one slot, few experts, or few or equal rows"
    )


@pytest.mark.parametrize(
    ("num_experts", "top_k", "rows", "ordered", "status"),
    [
        (8, 2, 1, 1, "skip"),  # 1 of 28 rows by chance
        (8, 2, 20, 20, "fail"),
        (8, 2, 20, 3, "pass"),
        (64, 6, 1, 1, "fail"),  # 1 of 75 million
        (32, 4, 1, 1, "skip"),  # 1 of 36,000, in one of the layers
        (32, 4, 9, 1, "pass"),
        (32, 4, 9, 3, "fail"),
    ],
)
def test_few_rows_may_be_ordered_by_chance(
    new_trace: Any, num_experts: int, top_k: int, rows: int, ordered: int, status: str
) -> None:
    ids_TK = np.arange(top_k, dtype=np.uint8) + np.zeros((rows, 1), np.uint8)
    ids_TK[ordered:] += 1
    spec = LayerSpec(layer=0, num_experts=num_experts, top_k=top_k)
    assert found(new_trace([spec], [ids_TK]))["Q3"].status == status


@pytest.mark.parametrize(
    ("groups", "per_token", "size", "top_k"),
    [(1, 1, 7, 3), (4, 1, 4, 4), (4, 2, 3, 3), (3, 2, 2, 3)],
)
def test_chance_of_order_is_that_of_all_draws(
    groups: int, per_token: int, size: int, top_k: int
) -> None:
    """Every choice of groups, and of experts of theirs: how many are 0 to k-1."""
    found = [
        set(experts) == set(range(top_k))
        for chosen in combinations(range(groups), per_token)
        for experts in combinations([g * size + e for g in chosen for e in range(size)], top_k)
    ]
    facts = {"num_groups": groups, "groups_per_token": per_token}
    spec = LayerSpec(layer=0, num_experts=groups * size, top_k=top_k, facts=facts)
    assert _chance_of_order(spec) == pytest.approx(np.mean(found))


def test_rows_within_one_group_may_be_ordered(new_trace: Any) -> None:
    """A quarter of the rows have all four experts of the first group, where a token has one."""
    facts = {"num_groups": 4, "groups_per_token": 1}
    spec = LayerSpec(layer=0, num_experts=16, top_k=4, facts=facts)
    group_T = np.random.default_rng(0).integers(0, 4, 400)
    rows_TB = (4 * group_T[:, None] + np.arange(4)).astype(np.uint8)
    assert found(new_trace([spec], [rows_TB]))["Q3"].status == Status.SKIP


def test_one_token_again_and_again_may_have_the_lowest_ids(new_trace: Any) -> None:
    """One layer of 16 gives all rows experts 0 and 1, as the others give all rows other pairs."""
    rng = np.random.default_rng(0)
    specs = [LayerSpec(layer=n, num_experts=8, top_k=2) for n in range(16)]
    ids_LK = np.sort([rng.permutation(8)[:2] for _ in specs], axis=1)
    ids_LK[5] = [0, 1]
    rows_TB = np.tile(ids_LK.ravel(), (40, 1)).astype(np.uint8)
    assert found(new_trace(specs, [rows_TB]))["Q3"].status == Status.SKIP
    # The same in rows of many tokens is a layer that was not written.
    rows_TB = np.argsort(rng.random((40, 16, 8)), axis=2)[:, :, :2].astype(np.uint8)
    rows_TB[:, 5] = [0, 1]
    assert found(new_trace(specs, [rows_TB.reshape(40, 32)]))["Q3"].status == Status.FAIL


def test_fair_rows_are_seldom_called_faults() -> None:
    """Exactly: the chance that a layer of fair rows has more than is allowed."""
    for num_experts, top_k in ((8, 2), (16, 2), (16, 4), (32, 4), (64, 6)):
        share = 1 / math.comb(num_experts, top_k)
        spec = LayerSpec(layer=0, num_experts=num_experts, top_k=top_k)
        for rows in (*range(1, 60), 200, 1000, 10_000):
            most = math.floor(ordered_allowed(spec, rows, 1) * rows)
            assert most == rows or bdtrc(most, rows, share) <= 1e-5


def test_empty_slots_are_no_fault(new_trace: Any) -> None:
    spec = LayerSpec(layer=0, num_experts=40, top_k=3, empty_slots=True)
    rows_TB = np.array([[1, 255, 255], [2, 3, 9], [255, 255, 255]], np.uint8)
    checks = found(new_trace([spec], [rows_TB]))
    assert {checks[f"Q{n}"].status for n in (1, 2, 3, 4, 5)} == {Status.PASS}
    rows_TB[1] = [7, 7, 41]
    checks = found(new_trace([spec], [rows_TB]))
    assert {checks[f"Q{n}"].status for n in (1, 4)} == {Status.FAIL}
