"""Q9: weights and scalars of a router pass, and each planted fault is found in its rows.

Shape suffixes: T tokens, K slots, N experts; T3 is logsumexp, entropy and margin of each token.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe_probe.analysis.accumulators.weight_faults import WeightAnomalies, WeightFaults
from moe_probe.analysis.quality import Check, Status, check_trace
from moe_probe.trace import LayerSpec, TraceWriter, open_trace

NUM_EXPERTS, TOP_K, NUM_TOKENS = 16, 4, 300
SOFTMAX = {"scoring": "softmax"}
Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]
Fault = Callable[[np.ndarray, np.ndarray], Any]


def spec(**options: Any) -> LayerSpec:
    options = {"facts": SOFTMAX, "scalars": True, "top_k": TOP_K, **options}
    return LayerSpec(layer=options.pop("layer", 3), num_experts=NUM_EXPERTS, **options)


def softmax(logits_TN: np.ndarray) -> np.ndarray:
    exp_TN = np.exp(logits_TN - logits_TN.max(axis=1, keepdims=True))
    return np.asarray(exp_TN / exp_TN.sum(axis=1, keepdims=True))


def routed(logits_TN: np.ndarray, top_k: int = TOP_K) -> Arrays:
    """Return ids and weights [T, K] in descending order, and scalars, as a router would."""
    order_TN = np.argsort(-logits_TN, axis=1)
    sorted_TN = np.take_along_axis(logits_TN, order_TN, axis=1)
    p_TN = softmax(sorted_TN)
    logsumexp_T = np.log(np.exp(logits_TN).sum(axis=1))
    entropy_T = -(p_TN * np.log(p_TN)).sum(axis=1)
    margin_T = sorted_TN[:, top_k - 1] - sorted_TN[:, top_k]
    scalars_T3 = np.stack([logsumexp_T, entropy_T, margin_T], axis=1)
    half = np.float16
    return (
        order_TN[:, :top_k].astype(np.uint8),
        p_TN[:, :top_k].astype(half),
        scalars_T3.astype(half),
    )


def logits(seed: int = 0, scale: float = 2.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, scale, (NUM_TOKENS, NUM_EXPERTS))


def inspect(arrays: Arrays, layer: LayerSpec, *, descending: bool = True) -> WeightAnomalies:
    return WeightFaults.inspect(layer, *arrays, descending=descending)


@pytest.mark.parametrize("scale", [0.0, 0.01, 1.0, 8.0])
@pytest.mark.parametrize("top_k", [1, 4, 15])
def test_a_router_shows_no_anomaly(scale: float, top_k: int) -> None:
    found = inspect(routed(logits(scale=scale), top_k), spec(top_k=top_k))
    assert not any(found[:5])
    # A few logits sum to what probabilities sum to; those that differ little from 0 never do.
    assert found.like_probabilities <= (0.1 * NUM_TOKENS if scale == 1 else 0)


def nan(weights_TK: np.ndarray, _: np.ndarray) -> None:
    weights_TK[[3, 7], [1, 0]] = np.nan, np.inf


def negative(weights_TK: np.ndarray, _: np.ndarray) -> None:
    weights_TK[[3, 7], -1] = -0.01


def swap(weights_TK: np.ndarray, _: np.ndarray) -> None:
    weights_TK[[3, 7]] = weights_TK[[3, 7], ::-1]


def scaled(weights_TK: np.ndarray, _: np.ndarray) -> None:
    weights_TK[[3, 7]] *= 1.02 / weights_TK[[3, 7]].sum(axis=1, keepdims=True)


def nothing(weights_TK: np.ndarray, _: np.ndarray) -> None:
    weights_TK[[3, 7]] = 0


def impossible(_: np.ndarray, scalars_T3: np.ndarray) -> None:
    scalars_T3[3, 1] = np.log(NUM_EXPERTS) + 0.01
    scalars_T3[7, 2] = -0.01


FAULTS = [
    (nan, "not_finite", "2 rows with NaN"),
    (negative, "negative", "2 rows with negative weights"),
    (swap, "unordered", "2 rows in another order"),
    (scaled, "wrong_sum", "2 rows with an impossible sum"),
    (nothing, "wrong_sum", "2 rows with an impossible sum"),
    (impossible, "impossible", "2 rows with impossible scalars"),
]


@pytest.mark.parametrize(("fault", "field", "_"), FAULTS)
def test_planted_rows_are_counted(fault: Fault, field: str, _: str) -> None:
    ids_TK, weights_TK, scalars_T3 = routed(logits())
    fault(weights_TK, scalars_T3)
    assert inspect((ids_TK, weights_TK, scalars_T3), spec()) == WeightAnomalies(**{field: 2})


def test_what_the_trace_does_not_say_is_not_expected() -> None:
    ids_TK, weights_TK, scalars_T3 = routed(logits())
    swap(weights_TK, scalars_T3)
    assert inspect((ids_TK, weights_TK, scalars_T3), spec(), descending=False) == WeightAnomalies()
    weights_TK = np.full_like(weights_TK, 0.6)
    for facts in ({}, {"scoring": "sigmoid"}, {"scoring": "softmax", "scale": 2.5}):
        assert inspect((ids_TK, weights_TK, scalars_T3), spec(facts=facts)) == WeightAnomalies()
    found = inspect((ids_TK, weights_TK, scalars_T3), spec(facts={**SOFTMAX, "scale": 1.0}))
    assert found == WeightAnomalies(wrong_sum=NUM_TOKENS)


@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
def test_normalised_weights_sum_to_one_or_the_scale(scoring: str) -> None:
    ids_TK, part_TK, _ = routed(logits())
    whole_TK = part_TK / part_TK.sum(axis=1, keepdims=True)
    facts = {"scoring": scoring, "normalized": True, "scale": 2.5}
    sums_T = part_TK.astype(float).sum(axis=1)
    odd = int((np.abs(sums_T - 1) > 0.01).sum())
    assert odd > NUM_TOKENS / 2
    for weights_TK, wrong in ((whole_TK, 0), (2.5 * whole_TK, 0), (part_TK, odd)):
        weights_TK = weights_TK.astype(np.float16)
        for options, number in (
            ({}, wrong),
            ({"empty_slots": True}, 0),
            ({"facts": {**facts, "normalized": False, "scoring": "sigmoid"}}, 0),
            ({"facts": {**facts, "num_zero_experts": 2}}, 0),
        ):
            layer = spec(**{"facts": facts, "scalars": False, **options})
            found = WeightFaults.inspect(layer, ids_TK, weights_TK, None, descending=True)
            assert found == WeightAnomalies(wrong_sum=number), options


def test_empty_slots_weigh_nothing() -> None:
    layer = spec(empty_slots=True)
    ids_TK, weights_TK, scalars_T3 = routed(logits())
    ids_TK[:50, 2:] = 255
    weights_TK[:50, 2:] = np.nan
    assert inspect((ids_TK, weights_TK, scalars_T3), layer) == WeightAnomalies()
    assert inspect((ids_TK, weights_TK, scalars_T3), spec()).not_finite == 50


@pytest.mark.parametrize("scale", [0.0, 0.3, 3.0, 30.0])
def test_probabilities_in_the_place_of_logits(scale: float) -> None:
    arrays = routed(softmax(logits(scale=scale)))
    assert inspect(arrays, spec()).like_probabilities == NUM_TOKENS
    assert inspect(routed(logits(scale=3.0)), spec()).like_probabilities < NUM_TOKENS / 20


def test_shards_merge_into_the_whole() -> None:
    ids_TK, weights_TK, scalars_T3 = routed(logits())
    swap(weights_TK, scalars_T3)
    layers = {layer: spec(layer=layer) for layer in (3, 4)}
    whole, left, right = (WeightFaults(layers, descending=True) for _ in range(3))
    whole.add_arrays(4, ids_TK, weights_TK, scalars_T3)
    left.add_arrays(4, ids_TK[:5], weights_TK[:5], scalars_T3[:5])
    right.add_arrays(4, ids_TK[5:], weights_TK[5:], scalars_T3[5:])
    left.merge(right)
    assert left.by_layer() == whole.by_layer() == {3: (0,) * 6, 4: WeightAnomalies(unordered=2)}
    assert left.rows_L.tolist() == [0, NUM_TOKENS]
    with pytest.raises(ValueError, match="cannot be merged"):
        left.merge(WeightFaults(layers, descending=False))


def checked(path: Path, arrays: list[Arrays], **run: Any) -> Check:
    """Write layers 3, 4, ... as one sequence and return what Q9 says."""
    layers = [spec(layer=3 + index) for index in range(len(arrays))]
    ids, weights, scalars = (list(column) for column in zip(*arrays, strict=True))
    with TraceWriter(path, layers=layers, capture="weights", run=run, force=True) as writer:
        writer.add(ids, topk_weights=weights, router_scalars=scalars)
    return next(check for check in check_trace(open_trace(path)) if check.check == "Q9")


@pytest.mark.parametrize(("fault", "_", "text"), FAULTS)
def test_check_names_layer_and_fault(tmp_path: Path, fault: Fault, _: str, text: str) -> None:
    sound, broken = routed(logits(0)), routed(logits(1))
    check = checked(tmp_path / "trace", [sound, sound], slot_order="descending_weight")
    assert (check.status, check.value) == (Status.PASS, "2 layers of 300 rows")
    assert check.expected == "finite, >= 0, descending, sum as configured"
    fault(*broken[1:])
    check = checked(tmp_path / "trace", [sound, broken], slot_order="descending_weight")
    assert (check.status, check.value) == (Status.FAIL, f"layer 4: {text}")


def test_order_is_checked_only_where_it_is_said(tmp_path: Path) -> None:
    arrays = routed(logits())
    swap(*arrays[1:])
    for order in ("unknown", "router_rank"):
        check = checked(tmp_path / "trace", [arrays], slot_order=order)
        assert (check.status, check.expected) == (Status.PASS, "finite, >= 0, sum as configured")


def test_a_layer_of_probabilities_fails(tmp_path: Path) -> None:
    arrays = routed(softmax(logits()))
    check = checked(tmp_path / "trace", [routed(logits()), arrays])
    assert (check.status, check.value) == (Status.FAIL, "layer 4: probabilities for logits")
    few = arrays[0][:99], arrays[1][:99], arrays[2][:99]
    assert checked(tmp_path / "trace", [few]).status is Status.PASS
