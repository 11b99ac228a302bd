"""C7: experts that subjects do without; for documents see `kernels.plain.longest_absence`.

Shape suffixes: N experts of a layer, C clusters (documents), D documents of an order, S subjects.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from moe_probe.analysis.metrics.coverage import experts_below, experts_below_null
from moe_probe.analysis.metrics.frequency import relative_load
from moe_probe.analysis.metrics.tiers import RARE


def idle_subjects(counts_SN: np.ndarray) -> np.ndarray:
    """Return on how many subjects each expert is never selected.

    Args:
        counts_SN: Selections by subject.

    Returns:
        int64 [N]; a subject without any selection is no subject here.
    """
    is_counted_S = counts_SN.any(axis=1)
    return np.asarray((counts_SN[is_counted_S] == 0).sum(axis=0))


def low_subjects(counts_SN: np.ndarray) -> np.ndarray:
    """Return on how many subjects each expert carries less than 10 % of its fair share.

    Args:
        counts_SN: Selections by subject.

    Returns:
        int64 [N]; the subjects of `idle_subjects` are among them.
    """
    is_counted_S = counts_SN.any(axis=1)
    return np.asarray((relative_load(counts_SN[is_counted_S]) < RARE).sum(axis=0))


def subject_coverage_table(
    counts_SN: np.ndarray, tokens_S: np.ndarray, subjects: list[str]
) -> pd.DataFrame:
    """Tabulate how many experts of one layer each subject does without.

    The nulls are of independent tokens at the fair rate p = A / (T N) of the subject. Tokens of a
    document resemble each other, so real subjects do without more: the nulls are lower bounds.

    Args:
        counts_SN: Selections by subject.
        tokens_S: T by subject.
        subjects: Names, in the order of S.

    Returns:
        subject, tokens
        unseen, unseen_null  experts never selected, and N (1 - p)^T
        low, low_null  experts below 10 % of their fair share, and N P(Binomial(T, p) < T p / 10)
            null for a subject without tokens, all four
    """
    num_experts = counts_SN.shape[1]
    is_counted_S = counts_SN.any(axis=1)
    # NaN tokens, not only a NaN rate: NaN to the power of 0 is 1.
    tokens_counted_S = np.where(is_counted_S, tokens_S, np.nan)
    fair_S = counts_SN.mean(axis=1) / tokens_counted_S
    return pd.DataFrame(
        {
            "subject": subjects,
            "tokens": tokens_S,
            "unseen": np.where(is_counted_S, (counts_SN == 0).sum(axis=1), np.nan),
            "unseen_null": num_experts * (1 - fair_S) ** tokens_counted_S,
            "low": experts_below(counts_SN, RARE),
            "low_null": experts_below_null(num_experts, tokens_S, fair_S, RARE),
        }
    )
