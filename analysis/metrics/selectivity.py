"""E9: how selective each expert is about subjects, and each subject about experts.

All subjects weigh the same here, and those without tokens are left out.

Shape suffixes: S subjects, N experts of a layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from moe_probe.analysis.metrics.frequency import relative_load
from moe_probe.analysis.metrics.imbalance import effective_experts, entropy, gini
from moe_probe.analysis.metrics.ranking import experts_to_cover
from moe_probe.analysis.metrics.subjects import purity


def expert_selectivity(counts_SN: np.ndarray, tokens_S: np.ndarray) -> pd.DataFrame:
    """Tabulate how evenly each expert is used over subjects.

    Args:
        counts_SN: Selections by subject, [S, N].
        tokens_S: Tokens of each subject.

    Returns:
        expert  index in the layer
        subject_entropy  entropy of P(subject|expert) over ln S, in [0, 1]; 1 is used by all
            alike, null with fewer than two subjects
        subject_gini  Gini index of the same, in [0, 1 - 1/S]; 0 is used by all alike
        subjects_above_fair  subjects with relative load above 1
        All are null for an expert that nothing selects, the last one without any selections.
    """
    counts_SN, tokens_S = counts_SN[tokens_S > 0], tokens_S[tokens_S > 0]
    subjects, num_experts = counts_SN.shape
    blank_N = np.full(num_experts, np.nan)
    purity_NS = purity(counts_SN, tokens_S).T
    above_N = (relative_load(counts_SN) > 1).sum(axis=0)
    return pd.DataFrame(
        {
            "expert": np.arange(num_experts),
            "subject_entropy": entropy(purity_NS) / math.log(subjects) if subjects > 1 else blank_N,
            "subject_gini": gini(purity_NS) if subjects else blank_N,
            "subjects_above_fair": np.where(counts_SN.any(), above_N, np.nan),
        }
    )


def subject_selectivity(counts_SN: np.ndarray, subjects: Sequence[str]) -> pd.DataFrame:
    """Tabulate how many experts each subject uses.

    Args:
        counts_SN: Selections by subject, [S, N].
        subjects: Names.

    Returns:
        subject  name
        experts_50, experts_80, experts_90, experts_99  busiest experts that carry so many percent
            of the subject's selections
        effective_experts  exp(entropy) of its assignment shares, in [k, N]
        All are null for a subject without selections.
    """
    cover_SP = experts_to_cover(counts_SN, (0.5, 0.8, 0.9, 0.99))
    columns = ("experts_50", "experts_80", "experts_90", "experts_99")
    return pd.DataFrame(
        {
            "subject": list(subjects),
            **dict(zip(columns, cover_SP.T, strict=True)),
            "effective_experts": effective_experts(counts_SN),
        }
    )
