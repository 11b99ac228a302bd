"""E11: whether a few experts carry every subject, a "standing committee", and what chance gives.

What an expert carries of a subject is its contribution per token: gate weight where there is any,
else selections. Everything is over all tokens and all experts, never over lists cut off at k: of
such a list, whose k experts are alike, c have c/k and (N - c)/(k - c) times the others' mean.

Shape suffixes: S subjects, N experts of a layer, M members.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from moe_probe.analysis.metrics.frequency import assignment_share
from moe_probe.analysis.metrics.ranking import rank_from_least
from moe_probe.analysis.statistics.successes import successes


@dataclass(frozen=True)
class Committee:
    """Experts that are ahead in nearly every subject; nobody with fewer than two subjects."""

    candidates: int
    """Experts among the k of largest contribution in enough of the subjects."""
    candidates_null: float
    """Their expected number, if every subject had as many listed, drawn at random: k, and more
    where experts share the last place."""
    members_M: np.ndarray
    """Candidates than which no other is at least as low in mean rank and variance of ranks, and
    lower in one."""
    coverage: float
    """Mean over subjects of the members' share of all contributions; c/N of any c experts, but
    these are those that came out ahead."""
    influence: float
    """Mean contribution of a member over that of another expert; likewise 1 of any c experts."""
    influence_flat: float
    """(N - c)/(k - c): the same by the published formula, of lists of k experts that are alike."""


def committee(contribution_SN: np.ndarray, top_k: int, share: float = 0.8) -> Committee:
    """Return the committee of one layer.

    Args:
        contribution_SN: Gate weight or selections of each expert per token, [S, N]; subjects
            without any are left out, all others weigh the same.
        top_k: k, the length of each subject's list.
        share: Part of the subjects that a candidate must be listed for, in (0, 1].

    Returns:
        NaN where something is undefined, such as the coverage of nobody.
        Source: Standing Committee (2601.03425), over all experts instead of truncated lists.
    """
    share_SN = assignment_share(contribution_SN[contribution_SN.sum(axis=1) > 0])
    subjects, experts = share_SN.shape
    if subjects < 2:
        nobody = np.zeros(0, np.int64)
        return Committee(0, math.nan, nobody, math.nan, math.nan, math.nan)
    enough = math.ceil(share * subjects - 1e-9)
    # Experts that share a place have the best of it.
    rank_SN = rank_from_least(-share_SN)
    is_listed_SN = (rank_SN <= top_k) & (share_SN > 0)
    candidate_M = np.flatnonzero(is_listed_SN.sum(axis=0) >= enough)
    place_M2 = np.stack([rank_SN.mean(axis=0), rank_SN.var(axis=0)], axis=1)[candidate_M]
    members_M = candidate_M[_undominated(place_M2)]
    number = len(members_M)
    coverage = float(share_SN[:, members_M].sum(axis=1).mean()) if number else math.nan
    others = (1 - coverage) * number
    return Committee(
        candidates=len(candidate_M),
        candidates_null=experts * float(successes(is_listed_SN.mean(axis=1))[enough:].sum()),
        members_M=members_M,
        coverage=coverage,
        influence=coverage * (experts - number) / others if others > 1e-12 else math.nan,
        influence_flat=(experts - number) / (top_k - number) if 0 < number < top_k else math.nan,
    )


def _undominated(place_M2: np.ndarray) -> np.ndarray:
    """Whether no other is at least as low in both and lower in one: bool [M]."""
    no_worse_MM = (place_M2[:, None] <= place_M2).all(axis=2)
    better_MM = (place_M2[:, None] < place_M2).any(axis=2)
    return np.asarray(~(no_worse_MM & better_MM).any(axis=0))
