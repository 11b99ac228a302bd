"""C8: one label per expert, for what its counts certify on this corpus.

A load counts as low only where the upper end of its 95 % interval says so. The label names a
fact of the tokens counted, never a cause.

Shape suffixes: N experts of a layer, S subjects.
"""

from __future__ import annotations

import numpy as np
from scipy.special import betainc, binom

from moe_probe.analysis.metrics.frequency import relative_load
from moe_probe.analysis.statistics.undefined import positive

RARE = 0.1
"""Relative load below which an expert is rare."""
NEAR_IDLE = 0.01
LOW = 0.5
"""Relative load above which an expert is never called low."""
BURSTY = 5.0
"""Longest idle run over the one expected at the own rate, above which an expert is bursty."""
LOCKED_SHARE = 0.8
LOCKED_SUBJECTS = 3
LOCKED_TEXT = 0.5
"""Share of the text above which these subjects have to hold more: else most experts would be locked
to them."""
LOCKED_COUNT = 30
"""Fewest selections that can tell whether an expert is locked to subjects."""
LOCKED_CHANCE = 0.01
"""Chance, for documents of random subjects, to be so much of so few: above it nothing is locked."""
_ROUNDING = 1e-12


def tiers(
    counts_SN: np.ndarray,
    load_high_N: np.ndarray,
    run_ratio_N: np.ndarray,
    documents_N: np.ndarray | float = np.nan,
) -> np.ndarray:
    """Return the tier of every expert of one layer, with its suffixes.

    The first of these that holds, with c the count, r the relative load and r+ its upper bound:

        unseen         c = 0; followed by the suffix `not certified` unless r+ < 0.1
        near-idle      r+ < 0.01
        rare           r+ < 0.1
        not certified  r < 0.1, or r < 0.5 and not r+ < 0.5: lower than the data can confirm
        used           none of these

    Suffixes, any of them after any tier, each led by ", ":

        bursty          the longest idle run is over 5 times the one expected at the own rate
        subject-locked  at least 80 % of its selections, of which there are 30 or more, are of at
            most 3 subjects; where these hold more than half of the layer's selections, the expert's
            load on all others is at most 0.4 of its own; and as many documents of random subjects
            are so much of so few in one of 100 cases at most

    Args:
        counts_SN: Selections by subject, [S, N].
        load_high_N: r+, the upper 95 % bound of the relative load, widened by the design effect;
            where it is NaN nothing is certified.
        run_ratio_N: Longest idle run over `expected_longest_run` at the own rate, or NaN. Take the
            median over shuffled orders of the documents, or their order decides.
        documents_N: `effective_documents` of each expert; where it is NaN they are not asked for.

    Returns:
        str [N].
    """
    counts_N = counts_SN.sum(axis=0)
    load_N = relative_load(counts_N)
    is_uncertain_N = (load_N < RARE) | ((load_N < LOW) & ~(load_high_N < LOW))
    rules = [
        ((counts_N == 0) & (load_high_N < RARE), "unseen"),
        (counts_N == 0, "unseen, not certified"),
        (load_high_N < NEAR_IDLE, "near-idle"),
        (load_high_N < RARE, "rare"),
        (is_uncertain_N, "not certified"),
    ]
    tier_N = np.select([rule for rule, _ in rules], [name for _, name in rules], "used")
    tier_N = np.char.add(tier_N, np.where(run_ratio_N > BURSTY, ", bursty", ""))
    return np.char.add(
        tier_N, np.where(subject_locked(counts_SN, documents_N), ", subject-locked", "")
    )


def effective_documents(counts_N: np.ndarray, squares_N: np.ndarray) -> np.ndarray:
    """Return how many documents of equal use an expert's selections are worth, (sum c)^2 / sum c^2.

    Args:
        counts_N: Selections, sum c over the documents.
        squares_N: Sum of c^2 over them.

    Returns:
        float64 [N], at least 1; NaN where nothing selects it. Source: Kish (1965).
    """
    return np.asarray(counts_N.astype(np.float64) ** 2 / positive(squares_N))


def subject_locked(counts_SN: np.ndarray, documents_N: np.ndarray | float = np.nan) -> np.ndarray:
    """Return which experts serve few subjects, as `tiers` defines it: bool [N].

    Where their documents are not known, none is locked to subjects of more than half of the text.
    """
    if not len(counts_SN):
        return np.zeros(counts_SN.shape[1], bool)
    top_SN = np.argsort(-counts_SN, axis=0, kind="stable")[:LOCKED_SUBJECTS]
    counts_N = counts_SN.sum(axis=0)
    share_SN = counts_SN.sum(axis=1)[top_SN].cumsum(axis=0) / max(counts_SN.sum(), 1)
    held_SN = np.take_along_axis(counts_SN, top_SN, axis=0).cumsum(axis=0)
    outside_SN = 1 - held_SN / positive(counts_N)
    load = (1 - LOCKED_SHARE) / (1 - LOCKED_TEXT)
    allowed_SN = load * (1 - np.maximum(share_SN, LOCKED_TEXT))
    is_held_SN = (outside_SN <= allowed_SN + _ROUNDING) & (share_SN < 1)
    # Where one subject is enough, the text of two more says nothing about the expert.
    fewest_N = is_held_SN.argmax(axis=0)
    share_N, outside_N = (
        np.take_along_axis(value_SN, fewest_N[None], axis=0)[0]
        for value_SN in (share_SN, outside_SN)
    )
    # Two documents have at most two subjects, whatever the expert is for: the binomial tail.
    others_N = outside_N * documents_N
    tail_N = betainc(documents_N - others_N, others_N + 1, share_N)
    chance_N = binom(len(counts_SN), fewest_N + 1) * tail_N
    is_rare_N = np.where(np.isnan(tail_N), share_N <= LOCKED_TEXT, chance_N <= LOCKED_CHANCE)
    return np.asarray((counts_N >= LOCKED_COUNT) & is_held_SN.any(axis=0) & is_rare_N)
