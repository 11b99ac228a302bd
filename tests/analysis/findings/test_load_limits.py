"""What loads fair routing leads to, however few documents tell how far they vary.

Shape suffixes: N experts, D documents, R repetitions, T tokens of a document, K slots.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from moe_probe.analysis.findings.headline import load_limits

EXPERTS, TOP_K, LENGTH = 16, 2, 50


def test_limits_hold_all_experts_of_fair_routing() -> None:
    facts = {"layer": 3, "num_experts": 64, "top_k": 6, "tokens": 100, "assignments": 600}
    layers = pd.DataFrame([{**facts, "tokens_effective": 2000.0, "documents": 10_000}])
    experts = pd.DataFrame({"layer": 3, "relative_load": 1.0, "deff": np.full(64, np.nan)})
    low_N, high_N = load_limits(experts, layers)
    (low,), (high,) = set(low_N), set(high_N)
    load_RN = np.random.default_rng(4).binomial(2000, 6 / 64, (1000, 64)) / 2000 * 64 / 6
    assert ((load_RN < low) | (load_RN > high)).any(axis=1).mean() <= 0.005
    # And no wider than that: about 4.5 standard deviations.
    assert 4 < (high - 1) / math.sqrt((64 - 6) / (6 * 2000)) < 5


@pytest.mark.parametrize("documents", [2, 3, 10, 30])
@pytest.mark.parametrize("spread", [0.0, 0.5])
def test_few_documents_rarely_exceed_chance(documents: int, spread: float) -> None:
    """Documents prefer experts of their own, with a design effect that they alone tell."""
    rng, outside = np.random.default_rng(8), 0
    for _ in range(60):
        score_DTN = spread * rng.normal(size=(documents, 1, EXPERTS))
        score_DTN = score_DTN + rng.gumbel(size=(documents, LENGTH, EXPERTS))
        ids_DTK = np.argsort(-score_DTN, axis=2)[:, :, :TOP_K]
        counts_DN = np.array([np.bincount(ids.ravel(), minlength=EXPERTS) for ids in ids_DTK])
        p_N = counts_DN.mean(axis=0) / LENGTH
        variance_N = counts_DN.var(axis=0, ddof=1) / LENGTH
        deff_N = variance_N / np.where(p_N > 0, p_N * (1 - p_N), np.nan)
        tokens = documents * LENGTH
        effective = tokens / np.nanmedian(deff_N)
        facts = {"tokens_effective": effective, "documents": documents, "tokens": tokens}
        facts |= {"assignments": tokens * TOP_K, "num_experts": EXPERTS, "top_k": TOP_K}
        load_N = p_N * EXPERTS / TOP_K
        experts = pd.DataFrame({"layer": 0, "relative_load": load_N, "deff": deff_N})
        low_N, high_N = load_limits(experts, pd.DataFrame([{"layer": 0, **facts}]))
        outside += ((load_N < low_N) | (load_N > high_N)).any()
        # Two documents exclude nothing.
        assert documents > 2 or (high_N >= EXPERTS / TOP_K).all()
    assert outside == 0


@pytest.mark.parametrize(("documents", "share"), [(100, 0.3), (300, 0.2)])
def test_experts_of_few_documents_vary_more_than_the_others(documents: int, share: float) -> None:
    """All have the same load on average, four of them from some of the documents alone."""
    rng, outside = np.random.default_rng(9), {"own": 0, "layer": 0}
    rate, tokens = TOP_K / EXPERTS, documents * LENGTH
    for _ in range(100):
        on_DN = np.ones((documents, EXPERTS))
        on_DN[:, :4] = (rng.random((documents, 4)) < share) / share
        p_N = (counts_DN := rng.binomial(LENGTH, rate * on_DN)).mean(axis=0) / LENGTH
        deff_N = counts_DN.var(axis=0, ddof=1) / LENGTH / (p_N * (1 - p_N))
        facts = {"tokens_effective": tokens / np.median(deff_N), "documents": documents}
        facts |= {"layer": 0, "num_experts": EXPERTS, "top_k": TOP_K}
        facts |= {"tokens": tokens, "assignments": tokens * TOP_K}
        for name, known_N in (("own", deff_N), ("layer", np.full(EXPERTS, np.nan))):
            load_N = p_N / rate
            experts = pd.DataFrame({"layer": 0, "relative_load": load_N, "deff": known_N})
            low_N, high_N = load_limits(experts, pd.DataFrame([facts]))
            outside[name] += ((load_N < low_N) | (load_N > high_N)).any()
    assert outside["own"] == 0
    assert outside["layer"] > 20
