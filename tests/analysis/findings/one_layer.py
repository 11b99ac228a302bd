"""Tables of one layer of sixteen experts, as findings take them, from expert ids.

Shape suffixes: T tokens, K slots, N experts, D documents, S subjects, B replicates.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from moe_probe.analysis.metrics.idle import burstiness, rate_deficit
from moe_probe.analysis.metrics.tiers import tiers
from moe_probe.analysis.statistics.clusters import poisson_weights, replicate_sums
from moe_probe.analysis.statistics.idle_null import expected_longest_run
from moe_probe.analysis.statistics.intervals import rate_certifiable, share_interval
from moe_probe.analysis.statistics.multiplicity import layer_test

EXPERTS, TOP_K, LENGTH, SUBJECTS = 16, 2, 50, 10
WINDOWS = pd.DataFrame({"layer": 7, "window": [100, 1000], "expected_runs_fair": 1e-3})
NO_SUBJECTS = pd.DataFrame(
    columns=["layer", "expert", "subject", "count", "frequency", "log_odds", "q_value"]
)
SPECIALIZATION = ("documents_bits", "null", "null_95", "documents_pooled_kl")
NO_SPECIALIZATION = pd.DataFrame(columns=list(SPECIALIZATION), dtype=float)
RESERVED, STARVED, ORDERED, BURSTING = range(4)


def route(weight_DN: np.ndarray, seed: int) -> np.ndarray:
    """Ids [D, LENGTH, K]: two experts for each token, drawn with its document's weights."""
    noise = np.random.default_rng(seed).gumbel(size=(len(weight_DN), LENGTH, EXPERTS))
    score = np.log(np.maximum(weight_DN, 1e-9))[:, None] + noise
    return np.argsort(-score, axis=2)[:, :, :TOP_K]


def longest_runs(ids_TK: np.ndarray) -> np.ndarray:
    places = [np.flatnonzero((ids_TK == expert).any(axis=1)) for expert in range(EXPERTS)]
    return np.array([np.diff([-1, *at.tolist(), len(ids_TK)]).max() - 1 for at in places])


def tables_of(ids_DTK: np.ndarray, layer: int) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """The `experts`, `layers` and `subjects` of one layer; documents are sorted by subject."""
    counts_DN = np.array([np.bincount(ids.ravel(), minlength=EXPERTS) for ids in ids_DTK])
    counts_SN = counts_DN.reshape(SUBJECTS, -1, EXPERTS).sum(axis=1)
    counts_N, tokens = counts_DN.sum(axis=0), len(ids_DTK) * LENGTH
    p_N = counts_N / tokens
    deff_N = counts_DN.var(axis=0) / LENGTH / np.where(counts_N > 0, p_N * (1 - p_N), math.nan)
    deff = float(np.nanmedian(deff_N))
    low_N, high_N = (p * EXPERTS / TOP_K for p in share_interval(counts_N, tokens, deff_N, deff))
    order = np.random.default_rng(9).permutation(len(ids_DTK))
    shuffled_N = longest_runs(ids_DTK[order].reshape(-1, TOP_K))
    ratio_N = shuffled_N / expected_longest_run(p_N, tokens)
    experts = pd.DataFrame(
        {
            "layer": layer,
            "expert": np.arange(EXPERTS),
            "count": counts_N,
            "relative_load": p_N * EXPERTS / TOP_K,
            "ci_low": low_N,
            "ci_high": high_N,
            "tier": tiers(counts_SN, high_N, ratio_N),
            "deff": deff_N,
            "documents": pd.array((counts_DN > 0).sum(axis=0), "Int64"),
            "longest_idle": longest_runs(ids_DTK.reshape(-1, TOP_K)),
            "longest_idle_shuffled": shuffled_N,
            "rate_deficit": rate_deficit(counts_N, tokens),
            "burstiness": burstiness(shuffled_N, counts_N, tokens),
        }
    )
    effective = tokens / deff
    weights_BD = poisson_weights([f"document{d}" for d in range(len(ids_DTK))], 200)
    replicates_BN = replicate_sums(weights_BD, counts_DN)
    facts = {
        "layer": layer,
        "num_experts": EXPERTS,
        "top_k": TOP_K,
        "tokens": tokens,
        "assignments": tokens * TOP_K,
        "tokens_effective": effective,
        "documents": len(ids_DTK),
        "certifiable_load": float(rate_certifiable(effective, EXPERTS, TOP_K)),
        "max_vio": experts["relative_load"].max() - 1,
        "max_vio_null": 0.05,
        "max_vio_noise": 0.02,
        "cv": experts["relative_load"].std(ddof=0),
        "cv_null": 0.04,
        "cv_noise": 0.005,
        "uniform_p": layer_test(counts_N, replicates_BN, len(ids_DTK))[2],
        "unseen_null": 0.0,
    }
    frequency_SN = counts_SN / (tokens / SUBJECTS)
    odds_SN = np.log((frequency_SN + 1e-3) / (p_N + 1e-3))
    subjects = pd.DataFrame(
        {
            "layer": layer,
            "expert": np.tile(np.arange(EXPERTS), SUBJECTS),
            "subject": np.repeat([f"subject{s}" for s in range(SUBJECTS)], EXPERTS),
            "count": counts_SN.ravel(),
            "frequency": frequency_SN.ravel(),
            "log_odds": odds_SN.ravel(),
            "q_value": np.where(np.abs(odds_SN) > 0.5, 0.001, 0.9).ravel(),
        }
    )
    return experts, pd.DataFrame([facts]), subjects


def windows_in_passes(expected_fair: float) -> pd.DataFrame:
    """Of two experts, at windows of 10 passes, 100 and one that no stream has room for."""
    facts = {10: (40.0, 1.0), 100: (400.0, expected_fair), 5_000: (math.nan, 0.0)}
    rows = [(7, w, t, fair / 2) for w, (t, fair) in facts.items() for _ in range(2)]
    return pd.DataFrame(rows, columns=["layer", "window", "window_tokens", "expected_runs_fair"])
