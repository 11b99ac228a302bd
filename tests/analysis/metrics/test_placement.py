"""Placements of experts against a plain loop and against all placements there are.

Shape suffixes: X placements, Y texts, N experts, D devices.
"""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_probe.analysis.metrics.placement import (
    contiguous_placement,
    greedy_placement,
    own_balance,
    placed_balance,
)


def placed_by_hand(counts: list[int], devices: int) -> list[int]:
    device, load = [-1] * len(counts), [0] * devices
    for expert in sorted(range(len(counts)), key=lambda e: (-counts[e], e)):
        room = [d for d in range(devices) if device.count(d) < len(counts) // devices]
        device[expert] = min(room, key=lambda d: (load[d], d))
        load[device[expert]] += counts[expert]
    return device


def balance_by_hand(counts: list[int], device: list[int], devices: int) -> float:
    loads = [
        sum(c for c, d in zip(counts, device, strict=True) if d == at) for at in range(devices)
    ]
    return sum(loads) / devices / max(loads)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 4), st.integers(1, 5))
def test_heaviest_first_to_the_lightest_with_room(
    seed: int, devices: int, each: int, texts: int
) -> None:
    rng = np.random.default_rng(seed)
    counts_XN = rng.integers(0, 6, (texts, devices * each))
    device_XN = greedy_placement(counts_XN, devices)
    for counts_N, device_N in zip(counts_XN.tolist(), device_XN.tolist(), strict=True):
        assert device_N == placed_by_hand(counts_N, devices)
        assert np.bincount(device_N, minlength=devices).tolist() == [each] * devices
    found_XX = placed_balance(counts_XN + 1, device_XN, devices)
    for row, device_N in enumerate(device_XN.tolist()):
        for column, counts_N in enumerate((counts_XN + 1).tolist()):
            wanted = balance_by_hand(counts_N, device_N, devices)
            assert found_XX[row, column] == pytest.approx(wanted, rel=1e-6)
    own_X = own_balance(counts_XN + 1, device_XN, devices)
    assert own_X == pytest.approx(found_XX.diagonal(), rel=1e-6)


def test_greedy_is_close_to_the_best_of_all_placements() -> None:
    rng = np.random.default_rng(0)
    # Up to the names of devices every placement of 8 experts on 2.
    every_XN = np.unique([np.array(p) // 4 for p in permutations(range(8))], axis=0)
    assert len(every_XN) == 70
    counts_YN = rng.integers(1, 100, (40, 8))
    best_Y = placed_balance(counts_YN, every_XN, 2).max(axis=0)
    found_Y = own_balance(counts_YN, greedy_placement(counts_YN, 2), 2)
    contiguous_Y = placed_balance(counts_YN, contiguous_placement(8, 2)[None], 2)[0]
    assert (found_Y <= best_Y + 1e-6).all()
    assert found_Y.mean() > 0.95 * best_Y.mean() > 1.05 * contiguous_Y.mean()


def test_nothing_selected_has_no_balance() -> None:
    nothing_YN, device_XN = np.zeros((1, 4), np.int64), contiguous_placement(4, 2)[None]
    assert device_XN.tolist() == [[0, 0, 1, 1]]
    assert np.isnan(placed_balance(nothing_YN, device_XN, 2)).all()
    assert np.isnan(own_balance(nothing_YN, device_XN, 2)).all()
    with pytest.raises(ValueError, match="4 experts do not split evenly over 3 devices"):
        greedy_placement(nothing_YN, 3)
