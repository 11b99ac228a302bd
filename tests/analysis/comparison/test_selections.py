"""What two runs select, against loops over sets and dictionaries."""

from __future__ import annotations

import numpy as np
import pytest

from moe_probe.analysis.comparison.selections import (
    PERSISTENCE,
    compare_sets,
    first_filled,
    rank_overlap,
    weight_difference,
)

EXPERTS = 9


def random_ids(seed: int, slots: int, *, empty: float = 0.3) -> np.ndarray:
    """Rows of distinct experts; some slots at the end are empty, as 255."""
    rng = np.random.default_rng(seed)
    ids_TK = rng.random((60, EXPERTS)).argsort(axis=1)[:, :slots].astype(np.uint8)
    number_T = np.where(rng.random(60) < empty, rng.integers(0, slots + 1, 60), slots)
    ids_TK[np.arange(slots) >= number_T[:, None]] = 255
    return ids_TK


@pytest.mark.parametrize(("seed", "slots"), [(0, (3, 3)), (1, (4, 2)), (2, (1, 1)), (3, (2, 4))])
def test_sets(seed: int, slots: tuple[int, int]) -> None:
    first, second = random_ids(seed, slots[0]), random_ids(seed + 10, slots[1])
    found = compare_sets(first, second, EXPERTS)
    for token, (mine, theirs) in enumerate(zip(first.tolist(), second.tolist(), strict=True)):
        left, right = ({e for e in row if e < EXPERTS} for row in (mine, theirs))
        mean = (len(left) + len(right)) / 2
        assert found.overlap_T[token] == (len(left & right) / mean if mean else 1)
        assert found.equal_T[token] == (left == right)
        lost = [expert in left - right for expert in mine]
        assert found.lost_TK[token].tolist() == lost
        kept = [theirs.index(e) if e in left & right else slots[1] for e in mine]
        assert found.place_TK[token].tolist() == kept
        harmonic = len(left) * len(right) / mean if mean else 0
        assert found.size_T[token] == pytest.approx(harmonic)
        assert found.depth_T[token] == max(len(left), len(right))
        filled_T, equal_T = first_filled(first, second, EXPERTS)
        assert filled_T[token] == (mine[0] < EXPERTS) + (theirs[0] < EXPERTS)
        assert equal_T[token] == (mine[0] == theirs[0])


def test_chance_of_sets_of_unequal_size() -> None:
    """Overlap and first slots of random sets, some of them empty, are what sizes say."""
    tables = [np.concatenate([random_ids(n + 20 * m, 4) for n in range(20)]) for m in (0, 1)]
    found = compare_sets(tables[0], tables[1], EXPERTS)
    expected = np.where(found.depth_T == 0, 1, found.size_T / EXPERTS).mean()
    error = found.overlap_T.std() / len(tables[0]) ** 0.5
    assert found.overlap_T.mean() == pytest.approx(expected, abs=4 * error)
    filled_T, equal_T = first_filled(tables[0], tables[1], EXPERTS)
    expected = np.choose(filled_T, [1, 0, 1 / EXPERTS]).mean()
    assert equal_T.mean() == pytest.approx(expected, abs=4 * equal_T.std() / len(equal_T) ** 0.5)
    # Ids of 256 experts fill a byte.
    byte_TK = np.array([[255], [3]], np.uint8)
    assert first_filled(byte_TK, byte_TK, 256)[0].tolist() == [2, 2]


@pytest.mark.parametrize(("seed", "slots"), [(0, (3, 3)), (1, (4, 2)), (2, (1, 1)), (3, (8, 8))])
def test_rank_overlap_is_its_definition(seed: int, slots: tuple[int, int]) -> None:
    first, second = (random_ids(seed + n, slots[n]) for n in (0, 1))
    found_T = rank_overlap(compare_sets(first, second, EXPERTS))
    for token, rows in enumerate(zip(first.tolist(), second.tolist(), strict=True)):
        mine, theirs = ([e for e in row if e < EXPERTS] for row in rows)
        depths = range(1, max(len(mine), len(theirs)) + 1)
        terms = [PERSISTENCE ** (d - 1) * len({*mine[:d]} & {*theirs[:d]}) / d for d in depths]
        whole = sum(PERSISTENCE ** (d - 1) for d in depths)
        assert found_T[token] == pytest.approx(sum(terms) / whole if depths else 1)
    assert rank_overlap(compare_sets(first, first, EXPERTS)) == pytest.approx(1)


def test_rank_overlap_of_equal_and_of_turned_rankings() -> None:
    ids_TK = np.array([[4, 2, 7]])
    equal, turned = (
        float(rank_overlap(compare_sets(ids_TK, other, EXPERTS))[0])
        for other in (ids_TK, ids_TK[:, ::-1])
    )
    # At depth 1 nothing is common, at depth 2 one of two, at depth 3 all.
    assert equal == pytest.approx(1)
    assert turned == pytest.approx((0.9 * 0.5 + 0.81) / (1 + 0.9 + 0.81))


@pytest.mark.parametrize("seed", range(3))
def test_weight_difference(seed: int) -> None:
    first, second = random_ids(seed, 4), random_ids(seed + 10, 3)
    rng = np.random.default_rng(seed)
    gates = [np.where(ids < EXPERTS, rng.random(ids.shape), 0) for ids in (first, second)]
    found_T = weight_difference(
        compare_sets(first, second, EXPERTS).place_TK, gates[0], 2.5 * gates[1]
    )
    for token in range(len(first)):
        shares = []
        for ids, weights in zip((first, second), gates, strict=True):
            total = weights[token].sum()
            row = zip(ids[token].tolist(), weights[token].tolist(), strict=True)
            shares.append({e: w / total for e, w in row if e < EXPERTS} if total else None)
        if None in shares:
            assert np.isnan(found_T[token])
        else:
            mine, theirs = (share or {} for share in shares)
            apart = [abs(mine.get(e, 0) - theirs.get(e, 0)) for e in range(EXPERTS)]
            assert found_T[token] == pytest.approx(sum(apart) / 2)
