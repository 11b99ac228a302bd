"""Committees by hand, by loops over experts, and where there is nothing to find.

Shape suffixes: S subjects, N experts.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binom

from moe_probe.analysis.metrics.committee import committee


def test_two_experts_that_carry_everything() -> None:
    """0 is first everywhere; 1 is second but in one subject; 5 leads one subject alone."""
    contribution_SN = np.array([[6, 3, 1, 0, 0, 0], [5, 3, 1, 1, 0, 0], [5, 1, 1, 0, 0, 3]])
    found = committee(contribution_SN, 2, share=0.6)
    assert found.candidates == 2
    # 0 has both the lowest mean rank and no variance.
    assert found.members_M.tolist() == [0]
    assert found.coverage == pytest.approx((0.6 + 0.5 + 0.5) / 3)
    assert found.influence == pytest.approx(found.coverage / ((1 - found.coverage) / 5))
    assert found.influence_flat == 5
    assert found.candidates_null == pytest.approx(6 * binom.sf(1, 3, 1 / 3))
    assert committee(contribution_SN, 2, share=1.0).candidates == 1


@pytest.mark.parametrize("seed", range(6))
def test_against_loops(seed: int) -> None:
    rng = np.random.default_rng(seed)
    contribution_SN = rng.random((5, 9)) + rng.random(9)
    found = committee(contribution_SN, 4, share=0.6)
    rank = [[sum(row > value) + 1 for value in row] for row in contribution_SN]
    listed = [e for e in range(9) if sum(r[e] <= 4 for r in rank) >= 3]
    assert found.candidates == len(listed)
    place = {e: (np.mean([r[e] for r in rank]), np.var([r[e] for r in rank])) for e in listed}
    members = [
        e
        for e in listed
        if not any(
            place[o][0] <= place[e][0] and place[o][1] <= place[e][1] and place[o] != place[e]
            for o in listed
        )
    ]
    assert found.members_M.tolist() == members
    parts = [sum(row[e] for e in members) / sum(row) for row in contribution_SN]
    assert found.coverage == pytest.approx(np.mean(parts))


def test_of_random_subjects_as_many_as_the_null() -> None:
    rng = np.random.default_rng(1)
    found = [committee(rng.random((3, 16)), 4, share=0.6) for _ in range(400)]
    mean = np.mean([layer.candidates for layer in found])
    assert mean == pytest.approx(found[0].candidates_null, rel=0.1)


def test_lists_that_ties_make_longer_are_those_of_the_null() -> None:
    """Of subjects with few tokens several experts have the k-th place."""
    rng = np.random.default_rng(2)
    found = []
    for _ in range(300):
        ids = np.argsort(rng.random((8, 40, 32)), axis=2)[..., :3].reshape(8, -1)
        counts_SN = np.stack([np.bincount(row, minlength=32) for row in ids])
        found.append(committee(counts_SN, 3, share=0.5))
    null = np.mean([layer.candidates_null for layer in found])
    assert np.mean([layer.candidates for layer in found]) == pytest.approx(null, rel=0.2)
    assert null > 2 * 32 * binom.sf(3, 8, 3 / 32)


def test_null_of_any_number_of_subjects() -> None:
    rng = np.random.default_rng(3)
    contribution_SN = rng.random((2_000, 10))
    found = committee(contribution_SN, 2, share=0.2)
    assert found.candidates_null == pytest.approx(10 * binom.sf(399, 2_000, 0.2))


def test_published_null_of_flat_lists() -> None:
    """12.6 / 15.5 / 20.3 / 30.0 for 64 experts, k = 6, and committees of one to four."""
    for number, published in ((1, 12.6), (2, 15.5), (3, 20.3), (4, 30.0)):
        # The first experts lead by turns, so that none dominates another.
        contribution_SN = np.zeros((12, 64))
        for subject in range(12):
            contribution_SN[subject, :number] = np.roll(np.arange(number), subject) + 1
        found = committee(contribution_SN, 6, share=1.0)
        assert found.members_M.tolist() == list(range(number))
        assert round(found.influence_flat, 1) == published


def test_nothing_to_find() -> None:
    for contribution_SN in (np.zeros((3, 4)), np.ones((1, 4)), np.zeros((0, 4))):
        found = committee(contribution_SN, 2)
        assert (found.candidates, len(found.members_M)) == (0, 0)
        assert math.isnan(found.coverage)
    nobody = committee(np.eye(4), 1)
    assert (nobody.candidates, math.isnan(nobody.coverage)) == (0, True)
    all_of_it = committee(np.tile([1.0, 0, 0, 0], (3, 1)), 1)
    assert (all_of_it.coverage, math.isnan(all_of_it.influence)) == (1, True)
