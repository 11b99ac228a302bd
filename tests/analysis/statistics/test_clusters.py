"""Cluster variance against loops, the jackknife and real documents; bootstrap weights that merge.

Shape suffixes: C documents, N experts, S subjects, B replicates, L layers.
"""

from __future__ import annotations

import hashlib
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_probe.analysis.statistics.clusters import (
    ClusterMoments,
    cluster_variance,
    design_effect,
    effective_tokens,
    layer_quantiles,
    poisson_weights,
    replicate_sums,
    stratified_variance,
)
from tests.analysis.statistics.documents import Documents, dirichlet_multinomial

DATA = Path(__file__).parents[3].parent / "shared/data/deepseek-v2-lite"


def random_documents(documents: int, seed: int) -> Documents:
    rng = np.random.default_rng(seed)
    return dirichlet_multinomial(np.array([0.5, 0.3, 0.15, 0.05]), documents, 8, rng)


def naive_variance(counts: list[int], tokens: list[int]) -> float:
    """The definition, document by document."""
    share, m = sum(counts) / sum(tokens), len(counts)
    squares = sum((c - share * n) ** 2 for c, n in zip(counts, tokens, strict=True))
    return m / (m - 1) * squares / sum(tokens) ** 2


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 12), st.integers(0, 10**6))
def test_variance_from_moments_is_the_definition(documents: int, seed: int) -> None:
    found = random_documents(documents, seed)
    variance_N = cluster_variance(found.moments())[0]
    tokens = found.tokens_C.tolist()
    naive = [naive_variance(counts, tokens) for counts in found.counts_CN.T.tolist()]
    assert variance_N.tolist() == pytest.approx(naive, rel=1e-6, abs=1e-12)


def test_variance_is_close_to_the_jackknife_and_the_bootstrap() -> None:
    found = random_documents(400, 1)
    variance_N = cluster_variance(found.moments())[0]
    rest_CN = found.counts_CN.sum(axis=0) - found.counts_CN
    share_CN = rest_CN / (found.tokens_C.sum() - found.tokens_C)[:, None]
    jackknife_N = 399 / 400 * ((share_CN - share_CN.mean(axis=0)) ** 2).sum(axis=0)
    assert variance_N == pytest.approx(jackknife_N, rel=0.02)
    both_CN = np.column_stack([found.counts_CN, found.tokens_C])
    sums_BN = replicate_sums(poisson_weights([f"d{i}" for i in range(400)], 2000), both_CN)
    share_BN = sums_BN[:, :-1] / sums_BN[:, -1:]
    assert variance_N == pytest.approx(share_BN.var(axis=0), rel=0.1)


def test_moments_of_shards_add_up() -> None:
    found, subject_C = random_documents(60, 2), np.arange(60) % 3
    whole = found.moments()
    pooled = found.moments(subject_C).pooled()
    for name, value in vars(whole).items():
        assert getattr(pooled, name) == pytest.approx(value)


def test_stratified_variance_is_that_of_fixed_subjects() -> None:
    found, subject_C = random_documents(90, 3), np.arange(90) % 3
    moments = found.moments(subject_C)
    within_SN, tokens_S = cluster_variance(moments), moments.n_S
    expected_N = sum(
        (tokens_S[s] / tokens_S.sum()) ** 2 * within_SN[s] for s in range(len(tokens_S))
    )
    assert stratified_variance(moments) == pytest.approx(expected_N)


def test_subjects_that_differ_are_not_noise() -> None:
    rng = np.random.default_rng(4)
    first = dirichlet_multinomial(np.array([0.8, 0.1, 0.1]), 100, 50, rng)
    second = dirichlet_multinomial(np.array([0.1, 0.1, 0.8]), 100, 50, rng)
    both = Documents(
        np.concatenate([first.counts_CN, second.counts_CN]),
        np.concatenate([first.tokens_C, second.tokens_C]),
    )
    moments = both.moments(np.repeat([0, 1], 100))
    pooled_N = cluster_variance(moments.pooled())[0]
    stratified_N = stratified_variance(moments)
    assert (stratified_N[[0, 2]] < 0.2 * pooled_N[[0, 2]]).all()


def test_a_subject_with_one_document_is_centred_on_all() -> None:
    found, subject_C = random_documents(21, 5), np.array([0] * 20 + [1])
    tokens, share_N = found.tokens_C.sum(), found.counts_CN.sum(axis=0) / found.tokens_C.sum()
    first = Documents(found.counts_CN[:20], found.tokens_C[:20])
    lone_N = (found.counts_CN[20] - share_N * found.tokens_C[20]) ** 2 / tokens**2
    share_of_first = (first.tokens_C.sum() / tokens) ** 2
    expected_N = share_of_first * cluster_variance(first.moments())[0] + lone_N
    assert stratified_variance(found.moments(subject_C)) == pytest.approx(expected_N)


def test_undefined_variances() -> None:
    found = random_documents(3, 6)
    moments = found.moments(np.array([0, 0, 1]))
    assert np.isnan(cluster_variance(moments)).tolist() == [[False] * 4, [True] * 4]
    none = ClusterMoments.zeros(2, 4)
    assert np.isnan(cluster_variance(none)).all()
    assert np.isnan(stratified_variance(none)).all()
    assert np.isnan(stratified_variance(random_documents(1, 0).moments())).all()
    # A subject without documents adds nothing.
    pairs = ((name, getattr(moments, name)) for name in vars(moments))
    empty = ClusterMoments(
        **{name: np.concatenate([sums, np.zeros((1, *sums.shape[1:]))]) for name, sums in pairs}
    )
    assert stratified_variance(empty).tolist() == stratified_variance(moments).tolist()


def test_design_effect_of_known_documents() -> None:
    # m equal documents of one expert each: every document is worth one token.
    counts_CN = np.repeat([[10, 0], [0, 10]], 50, axis=0)
    moments = Documents(counts_CN, np.full(100, 10)).moments()
    deff_N = design_effect(cluster_variance(moments)[0], np.array([0.5, 0.5]), 1000)
    assert deff_N == pytest.approx(10 * 100 / 99)
    assert effective_tokens(1000, deff_N) == pytest.approx(99)
    undefined = design_effect(np.zeros(2), np.array([0.0, 1.0]), 1000)
    assert np.isnan(undefined).all()
    assert np.isnan(effective_tokens(1000, undefined)).all()


def test_design_effect_of_independent_tokens_is_one() -> None:
    rng = np.random.default_rng(8)
    tokens_C = rng.integers(20, 120, 3000)
    found = Documents(rng.multinomial(tokens_C, np.full(64, 1 / 64)), tokens_C)
    share_N, tokens = found.counts_CN.sum(axis=0) / tokens_C.sum(), int(tokens_C.sum())
    deff_N = design_effect(cluster_variance(found.moments())[0], share_N, tokens)
    assert deff_N.mean() == pytest.approx(1, abs=0.02)


def test_quantiles_over_experts_with_a_value() -> None:
    deff_LN = np.array([[1.0, 2.0, 3.0, np.nan], [np.nan] * 4])
    found_QL = layer_quantiles(deff_LN, (0.0, 0.5, 1.0))
    assert found_QL[:, 0].tolist() == [1, 2, 3]
    assert np.isnan(found_QL[:, 1]).all()


@pytest.mark.skipif(not DATA.is_dir(), reason="the DeepSeek-V2-Lite sample is not on this machine")
def test_design_effects_of_deepseek_v2_lite() -> None:
    medians = {}
    for task in ("law", "intent"):
        data = np.load(DATA / f"{task}.npz")
        tokens_C, ids_TLK = data["document_lengths"], data["experts"].astype(int)
        document_T = np.repeat(np.arange(len(tokens_C)), tokens_C)
        deff_L = []
        for layer in range(26):
            key_TK = document_T[:, None] * 64 + ids_TLK[:, layer]
            counts_CN = np.bincount(key_TK.ravel(), minlength=len(tokens_C) * 64).reshape(-1, 64)
            variance_N = cluster_variance(Documents(counts_CN, tokens_C).moments())[0]
            share_N = counts_CN.sum(axis=0) / tokens_C.sum()
            deff_L.append(layer_quantiles(design_effect(variance_N, share_N, len(ids_TLK)), (0.5,)))
        medians[task] = round(float(np.median(deff_L)), 1)
    assert medians == {"law": 2.1, "intent": 0.8}


def test_weights_are_poisson_and_independent() -> None:
    weights_BC = poisson_weights([f"task/{i}" for i in range(5000)], 100)
    assert weights_BC.dtype == np.uint8
    share = np.bincount(weights_BC.ravel(), minlength=6)[:6] / weights_BC.size
    expected = np.array([math.exp(-1) / math.factorial(value) for value in range(6)])
    assert (abs(share - expected) <= 3 * np.sqrt(expected / weights_BC.size)).all()
    upper = np.triu_indices(100, 1)
    between_replicates = np.corrcoef(weights_BC)[upper]
    between_documents = np.corrcoef(weights_BC[:, :100].T)[upper]
    assert between_replicates.std() == pytest.approx(5000**-0.5, rel=0.06)
    assert between_documents.std() == pytest.approx(100**-0.5, rel=0.06)


def test_weights_depend_on_key_and_replicate_alone() -> None:
    keys = ["law/1", "", "prefix of law", "Ω"]
    weights_BC = poisson_weights(keys, 50)
    assert poisson_weights(keys[::-1], 20).tolist() == weights_BC[:20, ::-1].tolist()
    code = (
        "from moe_probe.analysis.statistics.clusters import poisson_weights;"
        "print(poisson_weights(['law/1', 'Ω'], 12).T.tolist())"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert other.stdout.strip() == str(weights_BC[:12, [0, 3]].T.tolist())
    assert poisson_weights([], 5).shape == (5, 0)


def test_weights_against_one_number_at_a_time() -> None:
    start = int.from_bytes(hashlib.blake2b(b"law/1", digest_size=8).digest(), "little")
    expected = []
    for replicate in range(1, 201):
        bits = (start + replicate * 0x9E3779B97F4A7C15) % 2**64
        bits = (bits ^ bits >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        bits = (bits ^ bits >> 27) * 0x94D049BB133111EB % 2**64
        uniform, weight = (bits ^ bits >> 31) / 2**64, 0
        while uniform >= math.fsum(math.exp(-1) / math.factorial(i) for i in range(weight + 1)):
            weight += 1
        expected.append(weight)
    assert poisson_weights(["law/1"], 200)[:, 0].tolist() == expected


def test_replicates_of_shards_add_to_those_of_the_whole() -> None:
    rng = np.random.default_rng(9)
    keys = [f"d{i}" for i in range(2500)]
    counts_CN = rng.integers(0, 60_000, (2500, 7)).astype(np.uint16)
    whole_BN = replicate_sums(poisson_weights(keys, 30), counts_CN)
    exact_BN = poisson_weights(keys, 30).astype(np.int64) @ counts_CN.astype(np.int64)
    assert whole_BN.tolist() == exact_BN.tolist()
    shuffled = rng.permutation(2500)
    shards_BN = [
        replicate_sums(poisson_weights([keys[i] for i in part], 30), counts_CN[part])
        for part in np.array_split(shuffled, 4)
    ]
    assert np.sum(shards_BN, axis=0).tolist() == whole_BN.tolist()


def test_bootstrap_intervals_hold_the_share() -> None:
    rng, share_N = np.random.default_rng(10), np.full(32, 1 / 32)
    held = []
    for run in range(60):
        found = dirichlet_multinomial(share_N, 200, 20, rng)
        weights_BC = poisson_weights([f"{run}/{i}" for i in range(200)], 200)
        sums_BN = replicate_sums(weights_BC, np.column_stack([found.counts_CN, found.tokens_C]))
        low_N, high_N = np.quantile(sums_BN[:, :-1] / sums_BN[:, -1:], (0.025, 0.975), axis=0)
        held += ((low_N <= share_N) & (share_N <= high_N)).tolist()
    assert 0.92 <= np.mean(held) <= 0.97
