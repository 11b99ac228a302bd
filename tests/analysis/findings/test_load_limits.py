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
    facts = {"num_experts": 64, "top_k": 6, "tokens": 100, "assignments": 600}
    layers = pd.DataFrame([{**facts, "tokens_effective": 2000.0}])
    (low,), (high,) = load_limits(layers.assign(documents=10_000))
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
        deff = np.nanmedian(variance_N / np.where(p_N > 0, p_N * (1 - p_N), np.nan))
        tokens = documents * LENGTH
        facts = {"tokens_effective": tokens / deff, "documents": documents, "tokens": tokens}
        facts |= {"assignments": tokens * TOP_K, "num_experts": EXPERTS, "top_k": TOP_K}
        layers = pd.DataFrame([facts])
        (low,), (high,) = load_limits(layers)
        load_N = p_N * EXPERTS / TOP_K
        outside += (load_N < low).any() or (load_N > high).any()
        # Two documents exclude nothing.
        assert documents > 2 or high >= EXPERTS / TOP_K
    assert outside == 0
