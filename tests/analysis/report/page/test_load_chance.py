"""What chance gives beside loads and devices, against simulated fair routing."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from moe_probe.analysis.metrics.devices import (
    UNLIMITED,
    balancedness,
    balancedness_null,
    device_null,
)
from moe_probe.analysis.report.page.data_load import (
    device_layers_chance,
    layers_chance,
    order_scores,
    quadrants,
)

N, K, T = 16, 2, 3000


def layers(effective: float = math.nan, number: int = 2) -> pd.DataFrame:
    facts = {"num_experts": N, "top_k": K, "tokens": T, "assignments": T * K}
    row = {**facts, "tokens_effective": effective}
    return pd.DataFrame([{"layer": 3 + place, **row} for place in range(number)])


def fair_counts(tokens: int, traces: int) -> np.ndarray:
    """Counts [traces, N] of tokens that choose 2 of 16 experts, all pairs alike."""
    pairs = np.array([(a, b) for a in range(N) for b in range(a)])
    drawn = np.random.default_rng(0).multinomial(tokens, np.full(120, 1 / 120), traces)
    membership = (pairs[:, :, None] == np.arange(N)).sum(axis=1)
    return np.asarray(drawn @ membership)


@pytest.mark.parametrize("number", [1, 2, 16, 256])
def test_sorted_normals_about_their_mean(number: int) -> None:
    normal = np.random.default_rng(1).standard_normal((8000, number))
    normal = np.sort(normal - normal.mean(axis=1, keepdims=True), axis=1)
    wanted = np.quantile(normal, [0.025, 0.5, 0.975], axis=0)
    np.testing.assert_allclose(order_scores(number), wanted, atol=0.06)
    assert (np.diff(order_scores(number), axis=0) >= 0).all()


def test_layers_use_effective_tokens_where_they_are_known() -> None:
    assert layers_chance(layers())["tokens"].tolist() == [T, T]
    found = layers_chance(layers(400.4))
    assert found["tokens"].tolist() == [400, 400]
    counts = fair_counts(400, 4000)
    load = counts * N / counts.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found["max_vio"], (load.max(axis=1) - 1).mean(), rtol=0.03)
    np.testing.assert_allclose(found["cv"], np.sqrt(load.var(axis=1).mean()), rtol=0.02)


def test_nothing_counted_has_no_chance() -> None:
    empty = layers().assign(tokens=0)
    assert layers_chance(empty)["cv"].isna().all()
    assert device_layers_chance(empty, [2], [UNLIMITED] * len(empty))["max_vio"].isna().all()
    assert quadrants(empty)["rate_deficit"] is None


@pytest.mark.parametrize("size", [2, 4, 8])
def test_devices_of_fair_routing(size: int) -> None:
    """Every definition against `balancedness` of simulated counts of three layers."""
    traces = fair_counts(500, 3 * 400).reshape(400, 3, N)
    wanted = pd.DataFrame([vars(balancedness(list(counts_LN), size)) for counts_LN in traces])
    vio_L = layers_chance(layers(500.0, number=3))["max_vio"].to_numpy()
    cv_L = np.full(3, device_null(N, K, size, 500).cv)
    found = vars(balancedness_null(cv_L, vio_L, size))
    for name in wanted.columns:
        # The ratio and MaxVio are small numbers about 0, the others near 1.
        rtol = 0.1 if name in ("tensorrt_llm_ratio", "max_vio") else 0.01
        assert found[name] == pytest.approx(wanted[name].mean(), rel=rtol), name
    by_layer = device_layers_chance(layers(500.0), [size], [UNLIMITED] * 2)
    assert by_layer["layer"].tolist() == [3, 4]
    ratio = wanted["tensorrt_llm_ratio"].mean()
    assert by_layer["max_vio_effective"].tolist() == pytest.approx([ratio] * 2, rel=0.1)
    assert (by_layer["max_vio"] < by_layer["max_vio_effective"]).all()


def test_quarters_begin_at_a_tenth_of_a_fair_load_and_at_five_times_the_run() -> None:
    found = quadrants(layers())
    assert found["burstiness"] == pytest.approx(math.log(5))
    rng = np.random.default_rng(2)

    def longest(rate: float) -> float:
        runs = []
        for _ in range(400):
            hits = np.flatnonzero(rng.random(T) < rate)
            runs.append(np.diff(np.concatenate([[-1], hits, [T]])).max() - 1)
        return float(np.mean(runs))

    wanted = math.log(longest(0.1 * K / N) / longest(K / N))
    assert found["rate_deficit"] == pytest.approx(wanted, abs=0.05)
