"""Where imbalance comes from: subjects (D19), the size of a batch (D3, D18), truncation (D20).

Shape suffixes: S subjects, N experts of a layer, B batch sizes; leading axes are kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from moe_probe.analysis.metrics.frequency import assignment_share
from moe_probe.analysis.metrics.imbalance import kl_uniform
from moe_probe.analysis.statistics.nulls import expected_indices
from moe_probe.analysis.statistics.set_sizes import SetSizes


@dataclass(frozen=True)
class Decomposition:
    """Imbalance within subjects = imbalance of all subjects pooled + specialisation, in nats."""

    within_kl: float
    """Mean over subjects of KL(q_subject || uniform), weighted by their selections."""
    pooled_kl: float
    """KL(q || uniform) of the summed counts: unfair overall. In [0, ln(N/k)]."""
    information: float
    """Mutual information of expert and subject: specialised, but fair overall."""


def decompose(counts_SN: np.ndarray) -> Decomposition:
    """Split imbalance into what subjects share and what they do not (D19).

    sum_S w_S KL(q_S || u) = KL(q || u) + I(expert; subject) with w_S the subject's share of all
    selections: an identity, up to rounding.

    Args:
        counts_SN: Selections by subject, int64 [S, N]; empty subjects weigh nothing.

    Returns:
        Three values in nats, not negative; NaN where nothing was selected. Null:
        `decomposition_null`.
    """
    counts_SN = counts_SN[counts_SN.sum(axis=1) > 0]
    if not len(counts_SN):
        return Decomposition(math.nan, math.nan, math.nan)
    weight_S = counts_SN.sum(axis=1) / counts_SN.sum()
    share_SN, share_N = assignment_share(counts_SN), assignment_share(counts_SN.sum(axis=0))
    lift_SN = np.divide(share_SN, share_N, out=np.ones_like(share_SN), where=share_SN > 0)
    information = weight_S @ (share_SN * np.log(lift_SN)).sum(axis=1)
    return Decomposition(
        within_kl=float(weight_S @ kl_uniform(counts_SN)),
        pooled_kl=float(kl_uniform(counts_SN.sum(axis=0))),
        # Rounding must not make equal subjects negative.
        information=max(float(information), 0.0),
    )


def decomposition_null(
    subjects: int, num_experts: int, top_k: float, assignments: float
) -> Decomposition:
    """Return the expectation of the three terms if subjects and experts are all alike (N0).

    The plug-in bias, to first order in 1/A: S, 1 and S - 1 times (N - k) / (2 A) nats.

    Args:
        subjects: S, of those that are not empty.
        num_experts: N.
        top_k: k.
        assignments: A, over the design effect for documents instead of tokens.
    """
    unit = (num_experts - top_k) / (2 * assignments) if assignments else math.nan
    return Decomposition(
        within_kl=subjects * unit, pooled_kl=unit, information=(subjects - 1) * unit
    )


def batch_imbalance(
    batch_stats_B5: np.ndarray, tokens_B: Sequence[int], num_experts: int, sizes: SetSizes
) -> pd.DataFrame:
    """Tabulate MaxVio and CV of batches against their size (D3, D18).

    Even at a large size and uneven at a small one is specialisation, not failure; uneven at every
    size, on text like that of training, is failure.

    Args:
        batch_stats_B5: For each size, over tumbling batches: their number, the sum of max/mean,
            of its square, of CV, and of 1 / sqrt of the selections. float64 [B, 5].
        tokens_B: Tokens per batch of each size.
        num_experts: N.
        sizes: Experts per token.

    Returns:
        tokens_per_batch, batches
        max_vio  mean over batches of max r - 1, in [0, N/k - 1]; null without batches
        max_vio_sd  its sd over batches (ddof 1); null with fewer than two
        cv  mean over batches, in [0, sqrt(N/k - 1)]; null without batches
        max_vio_null, cv_null  expectations under N0 of as many selections, in the mean over
            batches to first order; good to 2 % once an expert is expected 50 times in a batch

    Sources: MaxVio_batch of Loss-Free Balancing (2408.15664); global-batch balance (2501.11873).
    """
    number_B, sum_B, square_B, cv_B, root_B = np.asarray(batch_stats_B5, np.float64).T
    some_B = np.where(number_B > 0, number_B, np.nan)
    others_B = np.where(number_B > 1, number_B - 1, np.nan)
    mean_B = sum_B / some_B
    variance_B = np.maximum(square_B - number_B * mean_B**2, 0.0) / others_B
    # Both nulls fall with the root of the selections, of which text may differ in its share.
    fair_B = np.asarray(tokens_B) * sizes.mean_k
    slots_B = np.where(number_B > 0, (some_B / root_B) ** 2, fair_B).round(6)
    nulls = [
        expected_indices(num_experts, sizes.null_k, slots / sizes.null_k)
        for slots in slots_B.tolist()
    ]
    return pd.DataFrame(
        {
            "tokens_per_batch": np.asarray(tokens_B, np.int64),
            "batches": number_B.astype(np.int64),
            "max_vio": mean_B - 1,
            "max_vio_sd": np.sqrt(variance_B),
            "cv": cv_B / some_B,
            "max_vio_null": [null.max_vio for null in nulls],
            "cv_null": [null.cv for null in nulls],
        }
    )


@dataclass(frozen=True)
class Concentration:
    """A Gini index of vectors of which only the largest entries may have been kept."""

    gini: float
    num_experts: int
    """N, the length of the vectors."""
    kept: int
    """Entries kept per vector, the others set to 0: k for top-k weights, N if none were cut."""


def truncation_floor(num_experts: int, kept: int) -> float:
    """Return 1 - kept / N, the least Gini index of a vector with at most `kept` entries (D20).

    In [0, 1). Cutting each token's weights to its top k makes the index at least this, however
    even the load of the experts is.
    """
    return 1 - kept / num_experts


def concentration_difference(first: Concentration, second: Concentration) -> float:
    """Return the first Gini index minus the second, in [-1, 1].

    Raises:
        ValueError: The two have different floors, because one was cut shorter than the other;
            their difference would be one of cutting, not of routing.
    """
    floors = [truncation_floor(value.num_experts, value.kept) for value in (first, second)]
    if not math.isclose(*floors, abs_tol=1e-12):
        raise ValueError(
            f"Gini indices of vectors cut to {first.kept} of {first.num_experts} and to "
            f"{second.kept} of {second.num_experts} entries do not compare: cutting alone makes "
            f"them at least {floors[0]:.3f} and {floors[1]:.3f}"
        )
    return first.gini - second.gini
