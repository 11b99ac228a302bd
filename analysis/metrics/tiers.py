"""C8: one label per expert, for what its counts certify on this corpus.

A load counts as low only where the upper end of its 95 % interval says so. The label names a
fact of the tokens counted, never a cause.

Shape suffixes: N experts of a layer, S subjects.
"""

from __future__ import annotations

import numpy as np

from moe_probe.analysis.metrics.frequency import relative_load

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
"""Largest share of the text of these subjects: of more, most experts would be locked to them."""
LOCKED_COUNT = 30
"""Fewest selections that can tell whether an expert is locked to subjects."""


def tiers(counts_SN: np.ndarray, load_high_N: np.ndarray, run_ratio_N: np.ndarray) -> np.ndarray:
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
            most 3 subjects; the fewest that do hold at most half of the layer's selections

    Args:
        counts_SN: Selections by subject, [S, N].
        load_high_N: r+, the upper 95 % bound of the relative load, widened by the design effect;
            where it is NaN nothing is certified.
        run_ratio_N: Longest idle run over `expected_longest_run` at the own rate, or NaN. Take the
            median over shuffled orders of the documents, or their order decides.

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
    return np.char.add(tier_N, np.where(subject_locked(counts_SN), ", subject-locked", ""))


def subject_locked(counts_SN: np.ndarray) -> np.ndarray:
    """Return which experts serve few subjects, as `tiers` defines it: bool [N]."""
    if not len(counts_SN):
        return np.zeros(counts_SN.shape[1], bool)
    top_SN = np.argsort(-counts_SN, axis=0, kind="stable")[:LOCKED_SUBJECTS]
    counts_N = counts_SN.sum(axis=0)
    held_SN = np.take_along_axis(counts_SN, top_SN, axis=0).cumsum(axis=0)
    text_SN = counts_SN.sum(axis=1)[top_SN].cumsum(axis=0)
    is_held_SN = held_SN >= LOCKED_SHARE * counts_N
    # Where one subject is enough, the text of two more says nothing about the expert.
    text_N = np.take_along_axis(text_SN, is_held_SN.argmax(axis=0)[None], axis=0)[0]
    is_small_N = text_N <= LOCKED_TEXT * counts_SN.sum()
    return np.asarray((counts_N >= LOCKED_COUNT) & is_held_SN.any(axis=0) & is_small_N)
