"""Expert-parallel load balancing as DeepSeek published it, in loops: replicate, then pack.

An expert is a number, a load belongs to one layer. Groups of experts stay on one node where the
number of groups is a multiple of that of nodes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def rebalance_experts(
    weight: np.ndarray, num_replicas: int, num_groups: int, num_nodes: int, num_gpus: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Place replicas of experts on GPUs, layer by layer.

    Returns:
        The expert of each replica [layers, replicas]; the replicas of each expert
        [layers, experts, most replicas of one], -1 beyond its last; and their number
        [layers, experts].
    """
    loads = np.asarray(weight, np.float64)
    if num_groups % num_nodes:
        num_groups = num_nodes = 1
    placed = np.array([_layer(row, num_replicas, num_groups, num_nodes, num_gpus) for row in loads])
    number = np.array([np.bincount(row, minlength=loads.shape[1]) for row in placed])
    where = np.full((*loads.shape, number.max()), -1)
    for layer, row in enumerate(placed):
        for expert in range(loads.shape[1]):
            replicas = np.flatnonzero(row == expert)
            where[layer, expert, : len(replicas)] = replicas
    return placed, where, number


def _layer(load: np.ndarray, replicas: int, groups: int, nodes: int, gpus: int) -> list[int]:
    members = np.arange(len(load)).reshape(groups, -1)
    placed: list[int] = []
    for groups_here in _pack(load[members].sum(axis=1), nodes):
        experts = [int(expert) for group in groups_here for expert in members[group]]
        copies = _replicate([load[expert] for expert in experts], replicas // nodes)
        times = np.bincount(copies)
        shares = [load[experts[copy]] / times[copy] for copy in copies]
        for on_gpu in _pack(np.array(shares), gpus // nodes):
            placed += [experts[copies[replica]] for replica in on_gpu]
    return placed


def _replicate(load: Sequence[float], replicas: int) -> list[int]:
    """Give each further replica to whoever has the largest load per replica."""
    copies = list(range(len(load)))
    for _ in range(replicas - len(load)):
        shares = [load[expert] / copies.count(expert) for expert in range(len(load))]
        copies.append(int(np.argmax(shares)))
    return copies


def _pack(load: np.ndarray, packs: int) -> list[list[int]]:
    """Put the heaviest first into the lightest pack that has room; all get equally many."""
    size = len(load) // packs
    if size == 1:
        return [[item] for item in range(packs)]
    found: list[list[int]] = [[] for _ in range(packs)]
    for item in np.argsort(-load, kind="stable").tolist():
        open_packs = [pack for pack in found if len(pack) < size]
        min(open_packs, key=lambda pack: load[pack].sum() if pack else 0.0).append(item)
    return found
