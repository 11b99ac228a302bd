"""E6: subjects in the order of a dendrogram, and whether their clusters are the known areas.

Shape suffixes: S subjects.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Dendrogram:
    """Average linkage of the subjects that have selections."""

    order_S: np.ndarray
    """Subjects as the leaves have them, then those without selections: int64, a permutation."""
    known_S: np.ndarray
    """Subjects in the tree, ascending; leaf i of `links` is `known_S[i]`."""
    links: np.ndarray
    """The tree as scipy's `linkage` gives it, float64 [leaves - 1, 4]; empty for one leaf."""

    def clusters(self, number: int) -> np.ndarray:
        """Cut into at most `number` clusters: labels from 0 by subject, -1 outside of the tree."""
        from scipy.cluster.hierarchy import fcluster

        label_S = np.full(len(self.order_S), -1)
        label_S[self.known_S] = 0
        if len(self.links):
            label_S[self.known_S] = fcluster(self.links, number, "maxclust") - 1
        return label_S


def average_linkage(distance_SS: np.ndarray) -> Dendrogram:
    """Cluster subjects by average linkage.

    Args:
        distance_SS: A metric such as the root of `divergence.jensen_shannon`, symmetric; rows and
            columns of NaN for subjects without selections.
    """
    from scipy.cluster.hierarchy import leaves_list, linkage

    known_S = np.flatnonzero(~np.isnan(distance_SS.diagonal()))
    unknown_S = np.flatnonzero(np.isnan(distance_SS.diagonal()))
    if len(known_S) < 2:
        return Dendrogram(np.concatenate([known_S, unknown_S]), known_S, np.empty((0, 4)))
    known_SS = distance_SS[np.ix_(known_S, known_S)]
    links = linkage(known_SS[np.triu_indices(len(known_S), 1)], "average")
    return Dendrogram(np.concatenate([known_S[leaves_list(links)], unknown_S]), known_S, links)


def clades(tree: Dendrogram) -> dict[frozenset[int], float]:
    """Return what every branch holds, two subjects or more but not all, and where it splits.

    Args:
        tree: From `average_linkage`.

    Returns:
        Height by the set of its subjects, lowest first.
    """
    leaves = [frozenset([int(subject)]) for subject in tree.known_S]
    found = {}
    for left, right, height, _ in tree.links[:-1].tolist():
        leaves.append(leaves[int(left)] | leaves[int(right)])
        found[leaves[-1]] = height
    return found


def clade_chance(size: int, number: int) -> float:
    """Return the chance that given m of S leaves are a clade of a tree that joins random branches.

    2 S / (m (m + 1) C(S, m)) for 1 < m < S. Source: Rosenberg (2003).
    """
    return 2 * number / (size * (size + 1) * math.comb(number, size))


def area_agreement(tree: Dendrogram, area_S: np.ndarray) -> float:
    """Return the adjusted Rand index of areas and as many clusters of subjects.

    Args:
        tree: From `average_linkage`.
        area_S: Index of each subject's area.

    Returns:
        At most 1, 0 in the mean if clusters are random; NaN with fewer than two areas. Subjects
        outside of the tree are left out.
    """
    area_S = area_S[tree.known_S]
    areas = len(np.unique(area_S))
    if areas < 2:
        return np.nan
    return adjusted_rand(tree.clusters(areas)[tree.known_S], area_S)


def adjusted_rand(first_S: np.ndarray, second_S: np.ndarray) -> float:
    """Return the adjusted Rand index of two partitions of the same things.

    (pairs together in both - expected) / (mean of pairs together in each - expected).

    Args:
        first_S: Label of each thing.
        second_S: Label of each thing in the other partition.

    Returns:
        At most 1, which is equality, 0 in the mean for random labels; NaN where only one value is
        possible: both partitions are one cluster, or all are clusters of one.
        Source: Hubert and Arabie (1985).
    """
    _, row_S = np.unique(first_S, return_inverse=True)
    _, column_S = np.unique(second_S, return_inverse=True)
    table = np.zeros((row_S.max(initial=0) + 1, column_S.max(initial=0) + 1))
    np.add.at(table, (row_S, column_S), 1)
    both, first, second = (_pairs(part) for part in (table, table.sum(1), table.sum(0)))
    every = _pairs(np.asarray(len(row_S)))
    expected = first * second / every if every else 0.0
    most = (first + second) / 2
    return (both - expected) / (most - expected) if most > expected else np.nan


def _pairs(number: np.ndarray) -> float:
    """Return the number of pairs inside groups of the given sizes."""
    return float((number * (number - 1) / 2).sum())
