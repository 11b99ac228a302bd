"""Which documents two traces have in common, by task, subject and number.

A document that no number tells (live traffic) is in no other trace. A few-shot prefix counts as a
document of its subject.

Shape suffixes: C clusters of a trace, P pairs of clusters, S groups of a trace, B replicates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np

from moe_probe.analysis.reading.index import Clusters
from moe_probe.analysis.statistics.clusters import poisson_weights


@dataclass(frozen=True)
class Pairs:
    """Documents of both traces: clusters of the one and of the other."""

    first_P: np.ndarray
    second_P: np.ndarray

    def __len__(self) -> int:
        return len(self.first_P)


def document_keys(
    clusters: Clusters, groups: Sequence[tuple[str, str, str]], number: int
) -> list[str]:
    """Return what names each document in every trace that holds it.

    Args:
        clusters: Of the trace.
        groups: (task, subject, area) of its groups.
        number: The trace's own, part of names that no other trace can have.
    """
    joint = ""
    if (clusters.documents_C > 1).any():
        # Neighbours share a cluster: it is the same only where all clusters are.
        content = "\x1f".join((*clusters.keys, *map(str, clusters.documents_C.tolist())))
        joint = blake2b(content.encode("utf-8", "replace"), digest_size=8).hexdigest()
    names = []
    for key, group in zip(clusters.keys, clusters.group_C.tolist(), strict=True):
        task, subject, _ = groups[group]
        *_, kind, document, alone = key.rsplit("\x1f", 3)
        own = "" if alone == "0" else f"{number}:{alone}"
        names.append("\x1f".join((joint, task, subject, kind, document, own)))
    return names


def matched(first: Sequence[str], second: Sequence[str]) -> Pairs:
    """Pair documents of equal keys."""
    place = {key: number for number, key in reversed(list(enumerate(second)))}
    taken: dict[int, int] = {}
    for number, key in enumerate(first):
        if key in place:
            taken.setdefault(place[key], number)
    return Pairs(np.array([*taken.values()], np.int64), np.array([*taken], np.int64))


def draws(keys: Sequence[str], replicates: int, seed: int) -> np.ndarray:
    """Return how often each replicate draws each document: uint8 [B, C].

    It depends on the key and the seed, so every trace draws the same documents.
    """
    return poisson_weights([f"{seed}\x1f{key}" for key in keys], replicates)


def common_subjects(
    first: Sequence[tuple[tuple[str, str, str], str]],
    second: Sequence[tuple[tuple[str, str, str], str]],
) -> list[tuple[int, int]]:
    """Pair subjects: numbers in the one and in the other.

    Those of equal task and subject first, since a trace of several tasks names its subjects by
    both; then those of equal names, since runs may call one task differently.

    Args:
        first: (task, subject, area) and name of each subject of the one trace.
        second: Of the other.
    """
    pairs: dict[int, int] = {}
    keys: tuple[Callable[[tuple[tuple[str, str, str], str]], Any], ...] = (
        lambda each: each[0],
        lambda each: each[0][:2],
        lambda each: each[1],
    )
    for key in keys:
        place = {key(each): n for n, each in enumerate(second) if n not in pairs.values()}
        for number, each in enumerate(first):
            if number not in pairs and key(each) in place:
                pairs[number] = place.pop(key(each))
    return sorted(pairs.items())
