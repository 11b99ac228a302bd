"""N3: the subjects' labels permuted among documents, for E5 and E7.

Documents are permuted, never tokens: tokens of one document are alike, so a null of tokens is far
too narrow. The few-shot prefixes are no documents and must be left out by the caller. What all
questions of a subject share, such as the exemplars they attend to, no permutation can remove.

Shape suffixes: C documents, S subjects, N experts of a layer, R permutations.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moe_probe.analysis.metrics.information import expert_information

COMPILE_FROM = 100_000_000
"""Documents x subjects x experts x permutations from which the compiled loop pays."""
_CHUNK = 1 << 22
# Two ways to add up the same logarithms are no difference.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class PermutedInformation:
    """Mutual information of expert and subject beside its values under permuted labels; bits."""

    information: float
    """I of these documents."""
    null_R: np.ndarray
    """I under each permutation; its mean is the best estimate of the bias of I."""
    p_value: float
    """In [1 / (1 + R), 1]; NaN where nothing was selected."""
    expert_information_N: np.ndarray
    """I_e of these documents."""
    expert_null_N: np.ndarray
    """Mean of I_e over the permutations; NaN without any."""
    expert_p_value_N: np.ndarray
    """For multiplicity control over layers and experts; NaN for an expert without selections."""


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
        expert_information_N=observed_N,
        expert_null_N=null_RN.mean(axis=0) if len(null_RN) else np.full(len(observed_N), np.nan),
        expert_p_value_N=np.where(selected_N, permutation_p_value(observed_N, null_RN), np.nan),
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
