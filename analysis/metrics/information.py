"""E5: what the choice of an expert tells about the subject.

The other way round it is the same number: mutual information is symmetric. D19 puts it beside
imbalance (`decomposition`), `permutation` says what chance gives.

Shape suffixes: S subjects, N experts of a layer; leading axes, if any, are kept.
"""

from __future__ import annotations

import math

import numpy as np

from moe_probe.analysis.metrics.frequency import assignment_share
from moe_probe.analysis.metrics.imbalance import entropy
from moe_probe.analysis.statistics.undefined import positive


def mutual_information(counts_SN: np.ndarray, *, equal_weights: bool = False) -> np.ndarray:
    """Return I(expert; subject) = sum q_eS log2(q_eS / (q_e q_S)), in bits per selection.

    Args:
        counts_SN: Selections by subject, [..., S, N]; empty subjects weigh nothing.
        equal_weights: Every subject weighs the same, however many selections it has. Then I is
            the Jensen-Shannon divergence of all subjects.

    Returns:
        float64 [...] in [0, min(H(subject), log2(N/k))]; NaN where nothing was selected.
        Null: the mean of `permutation.permuted_information`, or `information_null`.
        Source: Shannon (1948); Lin (1991) for equal weights.
    """
    return np.asarray(expert_information(counts_SN, equal_weights=equal_weights).sum(axis=-1))


def expert_information(counts_SN: np.ndarray, *, equal_weights: bool = False) -> np.ndarray:
    """Return I_e = q_e KL(P(subject|e) || P(subject)), what each expert adds to I, in bits.

    It ranks experts by specialisation, weighed by use. Arguments as in `mutual_information`.

    Returns:
        float64 [..., N], not negative, summing to I; 0 for an expert that nothing selects, NaN
        where nothing was selected at all.
    """
    joint_SN = _joint(counts_SN, equal_weights)
    apart_SN = joint_SN.sum(axis=-2, keepdims=True) * joint_SN.sum(axis=-1, keepdims=True)
    lift_SN = np.divide(joint_SN, apart_SN, out=np.ones_like(joint_SN), where=joint_SN > 0)
    # Rounding must not make an expert of no subject negative.
    return np.asarray(np.maximum((joint_SN * np.log2(lift_SN)).sum(axis=-2), 0.0))


def uncertainty_coefficient(counts_SN: np.ndarray, *, equal_weights: bool = False) -> np.ndarray:
    """Return U = I / H(subject), the share of the subject's entropy that one selection removes.

    It compares models of different N and k better than I. Arguments as in `mutual_information`.

    Returns:
        float64 [...] in [0, 1]; NaN with fewer than two subjects.
    """
    subject_S = counts_SN.sum(axis=-1)
    bits = entropy((subject_S > 0) * 1 if equal_weights else subject_S) / math.log(2)
    information = mutual_information(counts_SN, equal_weights=equal_weights)
    return np.asarray(information / positive(bits))


def information_null(
    assignments_S: np.ndarray,
    num_experts: int,
    top_k: float,
    deff_S: np.ndarray | float = 1.0,
    *,
    equal_weights: bool = False,
) -> float:
    """Return what I is above its true value for want of tokens, to first order, in bits.

    (N - k) / 2 sum_S w_S (1 - w_S) deff_S / A_S nats. With observed weights and one design effect
    this is (S - 1)(N - k) deff / (2 A); for two equal subjects (N - k) / 8 (1/A1 + 1/A2), the bias
    of their Jensen-Shannon divergence. It holds whatever the experts' true shares are, as long as
    each gets several selections.

    Args:
        assignments_S: A_S, selections of each subject; empty subjects are left out.
        num_experts: N; of experts that something selects, where some are idle.
        top_k: k.
        deff_S: Design effect of each subject, or one for all.
        equal_weights: As in `mutual_information`.

    Returns:
        Bits, not negative; NaN where nothing was selected.
    """
    selected_S = assignments_S > 0
    if not selected_S.any():
        return math.nan
    total_S = assignments_S[selected_S]
    weight_S = np.full(len(total_S), 1 / len(total_S)) if equal_weights else total_S / total_S.sum()
    deff_S = np.broadcast_to(deff_S, selected_S.shape)[selected_S]
    lost = (weight_S * (1 - weight_S) * deff_S / total_S).sum()
    return float((num_experts - top_k) / 2 * lost / math.log(2))


def _joint(counts_SN: np.ndarray, equal_weights: bool) -> np.ndarray:
    """Return P(subject, expert), [..., S, N]; NaN where nothing was selected."""
    total = counts_SN.sum(axis=(-2, -1), keepdims=True)
    if not equal_weights:
        return np.asarray(counts_SN / positive(total))
    selected_S1 = counts_SN.sum(axis=-1, keepdims=True) > 0
    share_SN = np.where(selected_S1, assignment_share(counts_SN), 0.0)
    subjects = selected_S1.sum(axis=-2, keepdims=True)
    return np.asarray(share_SN / positive(subjects))
