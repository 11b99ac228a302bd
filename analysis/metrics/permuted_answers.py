"""F4, F6: how unusual a sum of value x answer is among those of answers permuted within subjects.

Its distribution is not normal where few documents use an expert or few answers are wrong: one
document that alone uses an expert and is one of a few wrong ones is 4 standard errors and more
from 0, and that in one of twenty permutations. A saddlepoint approximation knows such shapes.

Shape suffixes: C documents, S subjects, N experts of a layer, M some of them, J answers that
differ; 2 the lowest and the highest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr

from moe_probe.analysis.metrics.subjects import two_sided_p

_NORMAL = 2.0
"""Standard errors below which all shapes have about the tails of a normal distribution."""
_ANSWERS = 16
"""Of a subject, that stand for all of them; the lowest and the highest four stand alone."""
_STEPS = 30
_OFF = 0.1
"""Error of log p up to which a normal distribution will do."""
_BEYOND = 30.0
"""Of a tail below exp(-30) it is enough to know that."""
_LEAST = 1e-9
_ENTRIES = 1 << 16
"""Of the tables [C, M] that are worked on at a time: they stay in a processor's cache."""
_CLOSE = 0.01
"""Standard errors to which a saddlepoint is found."""


def permuted_p_values(
    z_N: np.ndarray,
    value_CN: np.ndarray,
    answer_C: np.ndarray,
    subject_C: np.ndarray,
    subjects: int,
) -> np.ndarray:
    """Return the two-sided p-values of sums over documents of value x answer.

    Each document gets one of its subject's answers by chance, independently of the others, which
    has the tails of a permutation but for subjects of few documents, where it is wider.

    Args:
        z_N: The sums over their standard errors under permutation; NaN where undefined.
        value_CN: Values less their subject's mean, times the weight of each row.
        answer_C: Answers less their subject's mean.
        subject_C: Index of each document's subject, below `subjects`.
        subjects: S.

    Returns:
        float64 [N] in [0, 1]: twice the smaller tail; NaN where z is.
        Source: Lugannani and Rice (1980), as Dey et al. (2017) use it for rare variants and cases.
    """
    p_N = two_sided_p(z_N)
    far_N = np.flatnonzero(np.abs(z_N) > _NORMAL)
    answers = _Answers.of(answer_C, subject_C, subjects)
    step = max(_ENTRIES // max(len(answer_C), 1), 1)
    for start in range(0, len(far_N), step):
        chosen_N = far_N[start : start + step]
        # Mirrored, so that all are tails to the right.
        value_CM, z_M = value_CN[:, chosen_N] * np.sign(z_N[chosen_N]), np.abs(z_N[chosen_N])
        sd_M, skewness_M, kurtosis_M = answers.shape(value_CM)
        # To first order log p is off by this much.
        off_M = np.abs(skewness_M) * z_M**3 / 6 + np.abs(kurtosis_M) * z_M**4 / 24
        odd_M = np.flatnonzero((off_M > _OFF) & (z_M**2 / 2 - off_M < _BEYOND))
        if len(odd_M):
            tail_M = _tail(answers, value_CM[:, odd_M], z_M[odd_M], sd_M[odd_M])
            p_N[chosen_N[odd_M]] = np.minimum(2 * tail_M, 1)
    return p_N


@dataclass(frozen=True)
class _Answers:
    """What each document's answer may be."""

    atom_CJ: np.ndarray
    chance_CJ: np.ndarray
    ends_2C1: np.ndarray
    """The lowest and the highest answer."""
    power_3C: np.ndarray
    """Means of the answer's square, third and fourth power, the last less that of a normal."""

    @classmethod
    def of(cls, answer_C: np.ndarray, subject_C: np.ndarray, subjects: int) -> _Answers:
        """Let each subject's answers stand for themselves, or for a few like them."""
        atom_SJ, chance_SJ = np.zeros((2, subjects, 0))
        for subject in range(subjects):
            mine, number = np.unique(answer_C[subject_C == subject], return_counts=True)
            if len(mine) > _ANSWERS:
                every, end = np.repeat(mine, number), _ANSWERS // 4
                inner = np.array_split(every[end:-end], _ANSWERS - 2 * end)
                groups = [*every[:end, None], *inner, *every[-end:, None]]
                mine, number = (np.array([f(g) for g in groups]) for f in (np.mean, len))
            more = ((0, 0), (0, max(len(mine) - atom_SJ.shape[1], 0)))
            atom_SJ, chance_SJ = np.pad(atom_SJ, more), np.pad(chance_SJ, more)
            atom_SJ[subject, : len(mine)] = mine
            chance_SJ[subject, : len(mine)] = number / number.sum()
        two_S, three_S, four_S = ((chance_SJ * atom_SJ**n).sum(axis=1) for n in (2, 3, 4))
        ends_2S = np.stack([f(atom_SJ, axis=1, initial=0) for f in (np.min, np.max)])
        return cls(
            atom_SJ[subject_C],
            chance_SJ[subject_C],
            ends_2S[:, subject_C, None],
            np.stack([two_S, three_S, four_S - 3 * two_S**2])[:, subject_C],
        )

    def shape(self, value_CM: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return standard deviation, skewness and excess kurtosis of sums: float64 [M] each."""
        two_C, three_C, four_C = self.power_3C
        square_CM = value_CM**2
        sd_M = np.sqrt(two_C @ square_CM)
        skewness_M = three_C @ (square_CM * value_CM) / sd_M**3
        return sd_M, skewness_M, four_C @ (square_CM * square_CM) / sd_M**4

    def cumulants(
        self, tilt_M: np.ndarray, value_CM: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return log E exp(tilt x sum) and its first two derivatives: float64 [M] each."""
        tilt_CM = tilt_M * value_CM
        # The largest exponent, so that nothing overflows.
        most_CM = np.maximum(*(tilt_CM * self.ends_2C1))
        moments_3CM = np.zeros((3, *tilt_CM.shape))
        for atom_C, chance_C in zip(self.atom_CJ.T, self.chance_CJ.T, strict=True):
            share_CM = chance_C[:, None] * np.exp(tilt_CM * atom_C[:, None] - most_CM)
            for moment_CM in moments_3CM:
                moment_CM += share_CM
                share_CM *= atom_C[:, None]
        whole_CM, first_CM, second_CM = moments_3CM
        mean_CM = first_CM / whole_CM
        spread_CM = np.maximum(second_CM / whole_CM - mean_CM**2, 0)
        return (
            (np.log(whole_CM) + most_CM).sum(axis=0),
            (value_CM * mean_CM).sum(axis=0),
            (value_CM**2 * spread_CM).sum(axis=0),
        )


def _tail(answers: _Answers, value_CM: np.ndarray, z_M: np.ndarray, sd_M: np.ndarray) -> np.ndarray:
    """Return the chance that sums exceed their means by z standard deviations or more, z > 0."""
    aim_M, tilt_M = z_M * sd_M, z_M / sd_M
    low_M, high_M = np.zeros_like(z_M), np.full_like(z_M, np.inf)
    for _ in range(_STEPS):
        log_M, mean_M, variance_M = answers.cumulants(tilt_M, value_CM)
        exponent_M = np.maximum(tilt_M * aim_M - log_M, 0)
        is_found_M = np.abs(aim_M - mean_M) < _CLOSE * sd_M
        if (is_found_M | (exponent_M > _BEYOND)).all():
            break
        low_M = np.where(mean_M < aim_M, tilt_M, low_M)
        high_M = np.where(mean_M < aim_M, high_M, tilt_M)
        # Newton's step, but not out of what encloses the saddlepoint.
        next_M = tilt_M + (aim_M - mean_M) / np.maximum(variance_M, np.finfo(np.float64).tiny)
        is_inside_M = (next_M > low_M) & (next_M < np.minimum(high_M, 4 * tilt_M))
        middle_M = np.where(np.isinf(high_M), 2 * tilt_M, (low_M + high_M) / 2)
        tilt_M = np.where(is_found_M, tilt_M, np.where(is_inside_M, next_M, middle_M))
    # Chernoff's bound holds for every tilt, also where no saddlepoint is found.
    bound_M, root_M = np.exp(-exponent_M), np.sqrt(2 * exponent_M)
    width_M = np.maximum(tilt_M * np.sqrt(variance_M), _LEAST)
    inverse_M = 1 / width_M - 1 / np.maximum(root_M, _LEAST)
    tail_M = ndtr(-root_M) + bound_M / math.sqrt(2 * math.pi) * inverse_M
    return np.where(is_found_M, np.clip(tail_M, 0, bound_M), bound_M)
