"""Right answers and experts: against single documents, all permutations, and the test's own form.

Shape suffixes: C documents, N experts.
"""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from moe_probe.analysis.metrics.correctness import correctness_table, exposure_table
from tests.analysis.documents import IDLE, random_documents


def answers(seed: int, documents: int) -> np.ndarray:
    """Answers right, wrong or unknown."""
    return np.random.default_rng(seed).choice([1, 0, -1], documents, p=[0.5, 0.4, 0.1])


def known(correct_C: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of one document each: how many have an answer, and how many a right one."""
    return (correct_C >= 0).astype(np.int64), (correct_C == 1).astype(np.int64)


def weighted_difference(value_C: np.ndarray, subject_C: np.ndarray, split_C: np.ndarray) -> float:
    """Mean value where `split_C` is 1 less that where it is 0, by subject, weighted."""
    differences, weights = [], []
    for subject in np.unique(subject_C):
        one_C = value_C[(subject_C == subject) & (split_C == 1)]
        other_C = value_C[(subject_C == subject) & (split_C == 0)]
        if len(one_C) and len(other_C):
            differences.append(one_C.mean() - other_C.mean())
            weights.append(len(one_C) * len(other_C) / (len(one_C) + len(other_C)))
    return float(np.average(differences, weights=weights)) if weights else np.nan


@pytest.mark.parametrize("seed", range(4))
def test_differences_within_subjects(seed: int) -> None:
    data, correct_C = random_documents(seed, 40, apart=1.0), answers(seed, 40)
    arrays = (data.counts_CN, data.tokens_C, data.subject_C, *known(correct_C))
    table, exposure = correctness_table(*arrays), exposure_table(*arrays, least=0.25)
    known_C = correct_C >= 0
    subject_C, answer_C = data.subject_C[known_C], correct_C[known_C]
    frequency_CN = (data.counts_CN / data.tokens_C[:, None])[known_C]
    for expert, frequency_C in enumerate(frequency_CN.T):
        expected = weighted_difference(frequency_C, subject_C, answer_C)
        assert table["difference"][expert] == pytest.approx(expected, abs=1e-14)
        exposed_C = frequency_C > 0.25
        row = exposure.loc[expert]
        assert row["exposed"] == exposed_C.sum()
        if exposed_C.any() and not exposed_C.all():
            means = answer_C[exposed_C].mean(), answer_C[~exposed_C].mean()
            assert (row["accuracy_exposed"], row["accuracy_unexposed"]) == pytest.approx(means)
            assert row["difference"] == pytest.approx(means[0] - means[1])
        within = weighted_difference(answer_C, subject_C, exposed_C)
        assert row["difference_within"] == pytest.approx(within, nan_ok=True, abs=1e-14)
    idle = table.loc[IDLE]
    assert (idle["difference"], idle["standard_error"]) == (0, 0)
    assert np.isnan([idle["z"], idle["p_value"], exposure["accuracy_exposed"][IDLE]]).all()


def test_standard_error_is_that_of_all_permutations() -> None:
    """Every order of the answers within two subjects, of 4 and 3 documents."""
    counts_CN = np.array([[1], [4], [2], [5], [0], [3], [4]])
    tokens_C = np.array([5, 6, 7, 8, 3, 4, 9])
    subject_C = np.array([0, 0, 0, 0, 1, 1, 1])
    correct_C = np.array([1, 0, 1, 1, 0, 0, 1])
    frequency_C = counts_CN[:, 0] / tokens_C
    found = [
        weighted_difference(frequency_C, subject_C, np.array([*first, *second]))
        for first in permutations(correct_C[:4].tolist())
        for second in permutations(correct_C[4:].tolist())
    ]
    row = correctness_table(counts_CN, tokens_C, subject_C, *known(correct_C)).loc[0]
    assert np.mean(found) == pytest.approx(0, abs=1e-15)
    assert row["standard_error"] == pytest.approx(np.std(found))
    assert row["z"] == pytest.approx(row["difference"] / row["standard_error"])


@pytest.mark.parametrize("seed", range(3))
def test_exposure_is_the_test_of_cochran_mantel_and_haenszel(seed: int) -> None:
    data, correct_C = random_documents(seed, 60, apart=1.0), answers(seed, 60)
    arrays = (data.counts_CN, data.tokens_C, data.subject_C, *known(correct_C))
    table = exposure_table(*arrays, least=0.25)
    for expert in range(7):
        excess = variance = 0.0
        for subject in range(3):
            member_C = (data.subject_C == subject) & (correct_C >= 0)
            uses_C = data.counts_CN[member_C, expert] > 0.25 * data.tokens_C[member_C]
            right_C = correct_C[member_C] == 1
            n, used, right = len(uses_C), uses_C.sum(), right_C.sum()
            excess += (uses_C & right_C).sum() - used * right / n
            variance += used * (n - used) * right * (n - right) / (n**2 * (n - 1))
        z = excess / variance**0.5 if variance else np.nan
        assert table["z"][expert] == pytest.approx(z, nan_ok=True)


def test_a_hard_subject_with_its_own_expert_is_no_evidence() -> None:
    """Expert 0 belongs to the subject that is answered badly: raw, it looks harmful."""
    subject_C = np.repeat([0, 1], 40)
    counts_CN = np.zeros((80, 2), np.uint8)
    counts_CN[:, 0] = np.tile([1, 2], 40) + 6 * subject_C
    counts_CN[:, 1] = 10 - counts_CN[:, 0]
    correct_C = np.concatenate(
        [np.tile([1, 1, 1, 1, 0, 0], 7)[:40], np.tile([1, 1, 0, 0, 0, 0], 7)[:40]]
    )
    arrays = (counts_CN, np.full(80, 10), subject_C, *known(correct_C))
    exposure = exposure_table(*arrays, least=0.5).loc[0]
    assert exposure["difference"] < -0.2
    assert np.isnan([exposure["difference_within"], exposure["z"]]).all()
    assert abs(correctness_table(*arrays)["z"][0]) < 1


def test_p_values_are_uniform_where_answers_are_random() -> None:
    p_values = np.concatenate(
        [
            correctness_table(
                data.counts_CN, data.tokens_C, data.subject_C, *known(answers(seed, 60))
            )["p_value"].iloc[:1]
            for seed in range(400)
            for data in [random_documents(seed, 60, apart=1.0, alike=1.0)]
        ]
    )
    for level in (0.05, 0.2, 0.5, 0.8):
        error = (level * (1 - level) / len(p_values)) ** 0.5
        assert (p_values <= level).mean() == pytest.approx(level, abs=3.5 * error)


@pytest.mark.parametrize("correct", [1, 0, -1])
def test_one_answer_alone_has_no_contrast(correct: int) -> None:
    data = random_documents(0, 20)
    arrays = (data.counts_CN, data.tokens_C, data.subject_C, *known(np.full(20, correct)))
    table, exposure = correctness_table(*arrays), exposure_table(*arrays)
    assert table.drop(columns="expert").isna().all(axis=None)
    assert exposure[["z", "p_value"]].isna().all(axis=None)
    assert len(table) == len(exposure) == 7


def test_documents_without_tokens_are_left_out() -> None:
    data, correct_C = random_documents(1, 30), answers(1, 30)
    more = (
        np.vstack([data.counts_CN, np.zeros((1, 7), np.uint16)]),
        np.append(data.tokens_C, 0),
        np.append(data.subject_C, 0),
        *known(np.append(correct_C, 1)),
    )
    arrays = (data.counts_CN, data.tokens_C, data.subject_C, *known(correct_C))
    assert correctness_table(*more).equals(correctness_table(*arrays))
    assert exposure_table(*more).equals(exposure_table(*arrays))


def in_pairs(value_CX: np.ndarray) -> np.ndarray:
    return np.asarray(value_CX.reshape(-1, 2, *value_CX.shape[1:]).sum(axis=1))


def test_rows_of_two_documents_tell_the_accuracy_of_all() -> None:
    """Three of four documents are right, so most pairs with a wrong one have a right one too."""
    rng = np.random.default_rng(3)
    subject_C = np.repeat([0, 1], 400)
    right_C = (rng.random(800) < np.where(subject_C == 0, 0.85, 0.6)).astype(np.int64)
    counts_CN = rng.binomial(20, [[0.3, 0.05]], (800, 2))
    tokens_C, one_C = np.full(800, 20), np.ones(800, np.int64)
    rows_CN, length_C, two_C, of_row_C = map(in_pairs, (counts_CN, tokens_C, one_C, right_C))
    found = exposure_table(rows_CN, length_C, subject_C[::2], two_C, of_row_C)
    assert found["exposed"][0] == 800
    assert found["accuracy_exposed"][0] == right_C.mean()
    uses_C = np.repeat(rows_CN[:, 1] > 0, 2)
    assert found["exposed"][1] == uses_C.sum()
    assert found["accuracy_exposed"][1] == pytest.approx(right_C[uses_C].mean())
    assert found["accuracy_unexposed"][1] == pytest.approx(right_C[~uses_C].mean())


def test_rows_of_two_documents_tell_the_same_difference() -> None:
    """The contrast of rows is on average that of documents, and varies as it says."""
    rng = np.random.default_rng(5)
    subject_C, tokens_C, one_C = np.arange(400) // 200, np.full(400, 30), np.ones(400, np.int64)
    found, errors = [], []
    for _ in range(200):
        right_C = (rng.random(400) < 0.3 + 0.4 * subject_C).astype(np.int64)
        share_C = 0.2 + 0.1 * right_C + 0.3 * subject_C
        counts_CN = rng.binomial(30, share_C)[:, None]
        rows_CN, length_C, two_C, of_row_C = map(in_pairs, (counts_CN, tokens_C, one_C, right_C))
        row = correctness_table(rows_CN, length_C, subject_C[::2], two_C, of_row_C).loc[0]
        found.append(row["difference"])
        errors.append(row["standard_error"])
    assert np.mean(found) == pytest.approx(0.1, abs=3 * np.std(found) / 200**0.5)
    # That of permuted answers has the effect itself in it.
    assert np.std(found) < np.mean(errors) < 1.5 * np.std(found)
