"""Tails of permuted answers, against permutations themselves.

Shape suffixes: C documents, N experts of a layer, R permutations.
"""

from __future__ import annotations

import numpy as np
import pytest

from moe_probe.analysis.metrics.correctness import correctness_table, margin_table
from moe_probe.analysis.metrics.permuted_answers import permuted_p_values
from moe_probe.analysis.metrics.subjects import two_sided_p
from moe_probe.analysis.statistics.multiplicity import benjamini_hochberg

SUBJECT_C = np.repeat([0, 1, 2], [40, 60, 100])


def centred(value_C: np.ndarray) -> np.ndarray:
    """Each value less its subject's mean."""
    mean_S = np.array([value_C[s == SUBJECT_C].mean() for s in range(3)])
    return np.asarray(value_C - mean_S[SUBJECT_C])


def permuted_sums(
    value_C: np.ndarray, answer_C: np.ndarray, permutations: int, rng: np.random.Generator
) -> np.ndarray:
    """Return value x answer of answers permuted within subjects: float64 [R]."""
    total_R = np.zeros(permutations)
    for subject in range(3):
        member_C = subject == SUBJECT_C
        drawn_RC = rng.permuted(np.tile(answer_C[member_C], (permutations, 1)), axis=1)
        total_R += drawn_RC @ value_C[member_C]
    return total_R


@pytest.mark.parametrize("answers", ["one wrong in twenty", "margins with outliers"])
@pytest.mark.parametrize("used", [2, 12, 200])
def test_tails_are_those_of_permutations(answers: str, used: int) -> None:
    """Values that are 0 but for a few documents, where normal tails are off by orders."""
    rng = np.random.default_rng([used, len(answers)])
    value_C = np.zeros(200)
    value_C[rng.choice(200, used, replace=False)] = rng.exponential(size=used)
    answer_C = (
        (rng.random(200) > 0.05) * 1.0 if answers.startswith("one") else rng.standard_t(3, size=200)
    )
    value_C, answer_C = centred(value_C), centred(answer_C)
    sum_R = permuted_sums(value_C, answer_C, 100_000, rng)
    for share in (0.02, 0.002, 0.0005):
        for level in np.quantile(sum_R, [share, 1 - share]):
            z = level / sum_R.std()
            tail = (sum_R <= level if level < 0 else sum_R >= level).mean()
            found = permuted_p_values(np.array([z]), value_C[:, None], answer_C, SUBJECT_C, 3)
            if abs(z) > 2:
                # Steps of the sum: the tail at the step may be more than was asked for.
                assert tail < 2 * found[0] < 16 * tail


def test_a_normal_sum_keeps_its_normal_tails() -> None:
    rng = np.random.default_rng(0)
    value_CN, answer_C = rng.normal(size=(200, 5)), rng.normal(size=200)
    value_CN = np.stack([centred(value_C) for value_C in value_CN.T], axis=1)
    z_N = np.array([np.nan, 1.0, -2.5, 3.5, -4.5])
    found = permuted_p_values(z_N, value_CN, centred(answer_C), SUBJECT_C, 3)
    assert np.isnan(found[0])
    assert found[1:] == pytest.approx(two_sided_p(z_N)[1:], rel=0.6)


def test_a_lone_wrong_document_is_no_discovery() -> None:
    """The only document that uses expert 0 is one of 10 wrong ones in 200: a chance of 1 in 20."""
    counts_CN = np.zeros((200, 1), np.int64)
    counts_CN[7] = 50
    right_C = np.ones(200, np.int64)
    right_C[[7, 30, 60, 90, 110, 120, 130, 140, 150, 160]] = 0
    facts = (counts_CN, np.full(200, 100), np.zeros(200, np.int64))
    row = correctness_table(*facts, np.ones(200, np.int64), right_C).loc[0]
    assert abs(row["z"]) > 4
    assert 0.04 < row["p_value"] < 0.25
    # As with right and wrong, so with margins.
    margin = margin_table(*facts, np.where(right_C == 1, 1.0, -3.0)).loc[0]
    assert margin["p_value"] == pytest.approx(row["p_value"])


def test_nothing_is_discovered_among_rare_experts_where_answers_are_random() -> None:
    false = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        right_C = (rng.random(200) > 0.06).astype(np.int64)
        tokens_C = rng.integers(5, 100, 200)
        share_CN = 0.02 * rng.lognormal(sigma=2.5, size=(200, 100))
        counts_CN = rng.binomial(tokens_C[:, None], np.minimum(share_CN, 1))
        facts = (counts_CN, tokens_C, SUBJECT_C, np.ones(200, np.int64), right_C)
        p_N = correctness_table(*facts)["p_value"].to_numpy()
        false += bool((benjamini_hochberg(p_N) < 0.05).any())
    # 3 are expected of 60, 8 have a chance below 2 %; normal tails make 40.
    assert false < 8
