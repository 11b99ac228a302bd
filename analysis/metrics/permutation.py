"""N3: the subjects' labels permuted among documents, for E5 and E7.

Documents are permuted, never tokens: tokens of one document are alike, so a null of tokens is far
too narrow. The few-shot prefixes are no documents and must be left out by the caller. What all
questions of a subject share, such as the exemplars they attend to, no permutation can remove.

R permutations alone tell no p-value below 1 / (1 + R), with which nothing stands out among more
tests than that. So q-values compare what is unusual with the largest permuted values of all tests.

Shape suffixes: C documents, S subjects, N experts of a layer, R permutations, K largest of them,
M tests of all layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moe_probe.analysis.metrics.information import expert_information
from moe_probe.analysis.statistics.multiplicity import benjamini_hochberg

COMPILE_FROM = 100_000_000
"""Documents x subjects x experts x permutations from which the compiled loop pays."""
_CHUNK = 1 << 22
# Two ways to add up the same logarithms are no difference.
_ROUNDING = 1e-12
_LARGEST = 10
# Where but one permutation differs, the sum of squares of the others is rounding.
_LEAST_SPREAD = 1e-4


@dataclass(frozen=True)
class Excess:
    """By how many standard deviations values exceed their permuted means."""

    observed_N: np.ndarray
    """NaN where the value is."""
    permuted_KN: np.ndarray
    """The K largest permuted values of each, K at most 10 and R / 2: by how many standard
    deviations of the other permuted values they exceed their mean."""


@dataclass(frozen=True)
class PermutedInformation:
    """Mutual information of expert and subject beside its values under permuted labels; bits."""

    information: float
    """I of these documents."""
    null_R: np.ndarray
    """I under each permutation; its mean is the best estimate of the bias of I."""
    p_value: float
    """In [1 / (1 + R), 1]; NaN where nothing was selected."""
    excess: Excess
    """Of I, a lone value: for `permutation_q_values` over layers."""
    expert_information_N: np.ndarray
    """I_e of these documents."""
    expert_null_N: np.ndarray
    """Mean of I_e over the permutations; NaN without any."""
    expert_p_value_N: np.ndarray
    """As `p_value`; NaN for an expert without selections."""
    expert_excess: Excess
    """For `permutation_q_values` over layers and experts."""


def permute_labels(label_C: np.ndarray, permutations: int, rng: np.random.Generator) -> np.ndarray:
    """Return the labels of the documents in random orders, once for all layers.

    Args:
        label_C: Label of each document, an index from 0 below 65,536.
        permutations: R; at least 200 for a null mean, 999 for p-values of single experts.
        rng: Source of randomness.

    Returns:
        uint8 or uint16 [R, C].
    """
    small_C = label_C.astype(np.uint8 if label_C.max(initial=0) < 256 else np.uint16)
    label_RC = np.empty((permutations, len(small_C)), small_C.dtype)
    for row_C in label_RC:
        row_C[:] = rng.permutation(small_C)
    return label_RC


def permuted_information(
    counts_CN: np.ndarray, subject_C: np.ndarray, permuted_RC: np.ndarray
) -> PermutedInformation:
    """Compare I(expert; subject) with its distribution where documents have random subjects.

    p = (1 + number of permutations with I >= the observed one) / (1 + R), of I and of every I_e.
    Documents keep their lengths, so subjects' weights vary with the permutation.

    Args:
        counts_CN: Selections of each expert in each document, integers [C, N].
        subject_C: Index of each document's subject.
        permuted_RC: The same labels permuted, from `permute_labels`.

    Returns:
        Observed values, null and p-values, with subjects weighted as observed.
        Source: Phipson and Smyth (2010) for the ones in p.
    """
    label_RC = np.vstack((subject_C.astype(permuted_RC.dtype), permuted_RC))
    information_RN = permuted_expert_information(counts_CN, label_RC)
    observed_N, null_RN = information_RN[0], information_RN[1:]
    information, null_R = observed_N.sum(), null_RN.sum(axis=1)
    selected_N = counts_CN.any(axis=0)
    return PermutedInformation(
        information=float(information),
        null_R=null_R,
        p_value=float(permutation_p_value(information, null_R)) if selected_N.any() else np.nan,
        excess=permuted_excess(np.array([information]), null_R[:, None]),
        expert_information_N=observed_N,
        expert_null_N=null_RN.mean(axis=0) if len(null_RN) else np.full(len(observed_N), np.nan),
        expert_p_value_N=np.where(selected_N, permutation_p_value(observed_N, null_RN), np.nan),
        expert_excess=permuted_excess(observed_N, null_RN),
    )


def permutation_p_value(observed: np.ndarray | float, null_R: np.ndarray) -> np.ndarray:
    """Return (1 + number of null values >= the observed one) / (1 + R).

    Args:
        observed: Statistic, [...]; large is unusual.
        null_R: The same of every permutation, [R, ...].

    Returns:
        float64 [...] in [1 / (1 + R), 1].
    """
    as_large = (null_R >= np.asarray(observed) - _ROUNDING).sum(axis=0)
    return np.asarray((1 + as_large) / (1 + len(null_R)))


def permuted_excess(observed_N: np.ndarray, null_RN: np.ndarray) -> Excess:
    """Put values, and the largest of each under permutation, on a scale that all tests share.

    A permuted value counts neither for its own mean nor for its own deviation, as the observed one
    does not: both exceed other permutations by as much where nothing but chance is at work.

    Args:
        observed_N: Statistic, [N]; large is unusual.
        null_RN: The same of every permutation.
    """
    number, largest = len(null_RN), min(_LARGEST, len(null_RN) // 2)
    if not largest:
        return Excess(np.full(len(observed_N), np.nan), np.empty((0, len(observed_N))))
    others = number - 1
    mean_N = null_RN.mean(axis=0)
    square_N = ((null_RN - mean_N) ** 2).sum(axis=0)
    permuted_KN = np.partition(null_RN, number - largest, axis=0)[number - largest :]
    square_KN = square_N - (permuted_KN - mean_N) ** 2 * number / others
    mean_KN = mean_N - (permuted_KN - mean_N) / others
    return Excess(
        observed_N=_in_deviations(observed_N, mean_N, square_N, number),
        permuted_KN=_in_deviations(permuted_KN, mean_KN, square_KN, others),
    )


def pooled_p_values(
    p_value_M: np.ndarray, excesses: Sequence[Excess], permutations: int
) -> np.ndarray:
    """Return p-values below 1 / (1 + R), from the permuted values of all tests together.

    A test among the K / (1 + R) most unusual has as its p-value the share of all tests' permuted
    values that exceed their means by as much; every other test keeps its own. Where all is chance,
    some alpha of the tests have p <= alpha, down to 1 / (1 + M R), whatever their distributions;
    of a single test that holds as far as the distributions have one shape.

    Args:
        p_value_M: From `permutation_p_value`, family after family; NaN is no test.
        excesses: Of the same families.
        permutations: R, the same in all.

    Returns:
        float64 [M] in [1 / (1 + M R), 1], NaN where p is.
        Source: Tusher, Tibshirani and Chu (2001), Ge, Dudoit and Speed (2003) for the pool.
    """
    is_test_M = np.isfinite(p_value_M)
    if not is_test_M.any():
        return p_value_M
    excess_M = np.concatenate([excess.observed_N for excess in excesses])
    permuted_KM = np.concatenate([excess.permuted_KN for excess in excesses], axis=1)
    permuted = np.sort(permuted_KM[:, is_test_M], axis=None)
    as_large_M = permuted.size - np.searchsorted(permuted, excess_M)
    pooled_M = (1 + as_large_M) / (1 + permutations * is_test_M.sum())
    in_tail_M = p_value_M <= len(permuted_KM) / (1 + permutations)
    return np.asarray(np.where(in_tail_M, pooled_M, p_value_M))


def permutation_q_values(
    p_value_M: np.ndarray, excesses: Sequence[Excess], permutations: int
) -> np.ndarray:
    """Return the q-values of `pooled_p_values`, one family of tests.

    Arguments as there. Tests that follow the same documents may all be as unusual as one of them,
    which R permutations show to be rarer than 1 / (1 + R) but not how rare.

    Returns:
        float64 [M] in [1 / (1 + R), 1], NaN where p is.
    """
    q_value_M = benjamini_hochberg(pooled_p_values(p_value_M, excesses, permutations))
    return np.asarray(np.maximum(q_value_M, 1 / (1 + permutations)))


def _in_deviations(
    value: np.ndarray, mean: np.ndarray, square: np.ndarray, number: int
) -> np.ndarray:
    """Return how far values exceed the mean of `number` others, whose sum of squares is known."""
    deviation = np.sqrt(np.maximum(square, 0.0) / max(number - 1, 1))
    return np.asarray((value - mean) / np.maximum(deviation, _LEAST_SPREAD * mean + _ROUNDING))


def permuted_expert_information(counts_CN: np.ndarray, label_RC: np.ndarray) -> np.ndarray:
    """Return I_e in bits under each labelling of the documents, float64 [R, N]."""
    num_labels = int(label_RC.max(initial=0)) + 1
    if label_RC.size * num_labels * counts_CN.shape[1] >= COMPILE_FROM:
        from moe_probe.analysis.kernels import permuted

        return permuted.expert_information(counts_CN, label_RC, num_labels)
    documents, num_experts = counts_CN.shape
    counts_CN = counts_CN.astype(np.float64)
    step = max(1, _CHUNK // (num_labels * (documents + num_experts)))
    information_RN = np.empty((len(label_RC), num_experts))
    for start in range(0, len(label_RC), step):
        label_R1C = label_RC[start : start + step, None]
        member_RSC = (label_R1C == np.arange(num_labels)[:, None]).astype(np.float64)
        information_RN[start : start + step] = expert_information(member_RSC @ counts_CN)
    return information_RN
