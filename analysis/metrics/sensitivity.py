"""E10, F1, F3: how much the counting rule changes what the other metrics say.

Tokens of the prompt's template are the same in all subjects: under a rule that counts many of
them, subjects look alike and few experts look used. The extreme is the last token of a prompt alone
(rule `decision`), which is nearly constant over MMLU: its values are never "MMLU routing".

Shape suffixes: S subjects, N experts of a layer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from moe_probe.analysis.metrics.divergence import (
    divergence_null,
    jensen_shannon,
    mean_of_pairs,
    random_jaccard,
    top_jaccard,
)
from moe_probe.analysis.metrics.imbalance import effective_experts, max_vio, unseen
from moe_probe.analysis.metrics.information import (
    information_null,
    mutual_information,
    uncertainty_coefficient,
)
from moe_probe.analysis.statistics.nulls import expected_indices


def rules_table(counts: Mapping[str, np.ndarray], top_k: int, null_k: float) -> pd.DataFrame:
    """Tabulate one layer under several counting rules.

    Compare a value with its null first: rules that count few tokens have large nulls. The nulls
    are those of independent tokens, so lower bounds of the noise.

    Args:
        counts: Selections by subject, int64 [S, N], under each rule by its name.
        top_k: k, the size of the sets of `jaccard`.
        null_k: k of the nulls, `SetSizes.null_k`, under all rules: k where no slot is empty.

    Returns:
        rule  name
        assignments  A
        max_vio, effective_experts, unseen  of all subjects pooled (D2, D8, C1)
        mutual_information_bits  subjects weighted as observed (E5)
        uncertainty  the same over the entropy of the subject
        divergence_bits  mean Jensen-Shannon divergence of two subjects (E6)
        jaccard  mean Jaccard index of two subjects' k most used experts (E6)
        All but the first two and `uncertainty` are followed by `<name>_null`, what routing that
            knows nothing gives. Values are null without selections.
    """
    return pd.DataFrame([_row(*rule, top_k, null_k) for rule in counts.items()])


def _row(rule: str, counts_SN: np.ndarray, top_k: int, null_k: float) -> dict[str, Any]:
    counts_N, assignments_S = counts_SN.sum(axis=0), counts_SN.sum(axis=1)
    assignments, num_experts = int(counts_N.sum()), len(counts_N)
    null = expected_indices(num_experts, null_k, assignments / null_k)
    used = int((counts_N > 0).sum())
    return {
        "rule": rule,
        "assignments": assignments,
        "max_vio": float(max_vio(counts_N)),
        "max_vio_null": null.max_vio,
        "effective_experts": float(effective_experts(counts_N)),
        "effective_experts_null": null.effective_experts,
        "unseen": float(unseen(counts_N)),
        "unseen_null": null.unseen,
        "mutual_information_bits": float(mutual_information(counts_SN)),
        "mutual_information_bits_null": information_null(assignments_S, used, null_k),
        "uncertainty": float(uncertainty_coefficient(counts_SN)),
        "divergence_bits": mean_of_pairs(jensen_shannon(counts_SN)),
        "divergence_bits_null": mean_of_pairs(divergence_null(assignments_S, used, null_k)),
        "jaccard": mean_of_pairs(top_jaccard(counts_SN, top_k)),
        "jaccard_null": random_jaccard(num_experts, top_k) if assignments else math.nan,
    }
