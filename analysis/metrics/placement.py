"""6.2: experts placed on devices by their loads, and how even that makes the loads of other text.

A device holds as many experts as any other, each once: no replicas.

Shape suffixes: X placements, Y texts, N experts of a layer, D devices,
P devices of all placements.
"""

from __future__ import annotations

import numpy as np

from moe_probe.analysis.metrics.devices import device_loads


def contiguous_placement(num_experts: int, devices: int) -> np.ndarray:
    """Return the device of every expert in contiguous blocks of equal size: int64 [N].

    Raises:
        ValueError: N is not a multiple of D.
    """
    size = int(device_loads(np.ones(num_experts, np.int64), devices)[0])
    return np.arange(num_experts) // size


def greedy_placement(counts_XN: np.ndarray, devices: int) -> np.ndarray:
    """Place experts by their loads: the heaviest first, each on the lightest device with room.

    Of experts with equal loads the first comes first, of devices with equal loads too.

    Args:
        counts_XN: Selections that each placement is made for.
        devices: D.

    Returns:
        The device of every expert, int64 [X, N]; each device holds N / D of them.

    Raises:
        ValueError: N is not a multiple of D.

    Sources: longest processing time first (Graham, 1969); `balanced_packing` of DeepSeek's EPLB.
    """
    placements, experts = counts_XN.shape
    room = int(device_loads(np.ones(experts, np.int64), devices)[0])
    order_XN = np.argsort(-counts_XN.astype(np.float64), axis=1, kind="stable")
    device_XN = np.zeros((placements, experts), np.int64)
    # Infinite where a device is full.
    load_XD = np.zeros((placements, devices))
    held_XD = np.zeros((placements, devices), np.int64)
    every_X = np.arange(placements)
    for expert_X in order_XN.T:
        device_X = load_XD.argmin(axis=1)
        device_XN[every_X, expert_X] = device_X
        held_XD[every_X, device_X] += 1
        load_XD[every_X, device_X] += np.where(
            held_XD[every_X, device_X] < room, counts_XN[every_X, expert_X], np.inf
        )
    return device_XN


def placed_balance(counts_YN: np.ndarray, device_XN: np.ndarray, devices: int) -> np.ndarray:
    """Return mean over largest device load of every text under every placement.

    Args:
        counts_YN: Selections of each text.
        device_XN: Device of every expert, of each placement.
        devices: D.

    Returns:
        float64 [X, Y] in [1 / D, 1], to 6 digits; NaN for texts without selections.
    """
    is_on_XDN = device_XN[:, None, :] == np.arange(devices)[:, None]
    # One product of matrices; single precision halves its time.
    every_PN = is_on_XDN.reshape(-1, device_XN.shape[1]).astype(np.float32)
    load_XDY = (every_PN @ counts_YN.T.astype(np.float32)).reshape(
        *is_on_XDN.shape[:2], len(counts_YN)
    )
    most_XY = load_XDY.max(axis=1).astype(np.float64)
    mean_Y = counts_YN.sum(axis=1) / devices
    return np.asarray(mean_Y / np.where(most_XY > 0, most_XY, np.nan))


def own_balance(counts_XN: np.ndarray, device_XN: np.ndarray, devices: int) -> np.ndarray:
    """Return mean over largest device load of one text for each placement: float64 [X].

    Args:
        counts_XN: Selections of the text that goes with each placement.
        device_XN: Device of every expert, of each placement.
        devices: D.
    """
    placements = len(counts_XN)
    place_XN = np.arange(placements)[:, None] * devices + device_XN
    load_XD = np.bincount(place_XN.ravel(), counts_XN.ravel(), placements * devices)
    load_XD = load_XD.reshape(placements, devices)
    most_X = load_XD.max(axis=1)
    return np.asarray(load_XD.mean(axis=1) / np.where(most_X > 0, most_X, np.nan))
