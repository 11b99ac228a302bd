"""N0 and N0g drawn token by token, for what has no closed form.

N0g is N0 within groups: each token draws M of D groups of consecutive experts uniformly, then its
k experts uniformly from these. D = M = 1 is N0. `limited_sets` draws scores instead, by
which groups are taken as such routers take them.

Shape suffixes: T tokens of a chunk, K slots, N experts, D groups, M groups of a token,
R repetitions.
"""

from __future__ import annotations

import numpy as np

_CHUNK = 1 << 20
"""Random numbers drawn at once: 4 MB."""


def simulate_counts(
    num_experts: int,
    top_k: int,
    tokens: int,
    rng: np.random.Generator,
    groups: int | None = None,
    limit: int | None = None,
) -> np.ndarray:
    """Return the selections of each expert by fair random tokens: int64 [N], summing to T k.

    Args:
        num_experts: N.
        top_k: k.
        tokens: T.
        rng: Where the random numbers come from.
        groups: D, for N0g; must divide N.
        limit: M, for N0g.

    Raises:
        ValueError: The groups do not divide the experts, or M of them hold fewer than k.
    """
    groups, limit = groups or 1, limit or groups or 1
    size = num_experts // groups
    if size * groups != num_experts or not top_k <= limit * size <= num_experts:
        raise ValueError(
            f"{limit} of {groups} groups of {num_experts} experts cannot give {top_k} experts."
        )
    counts_N = np.zeros(num_experts, np.int64)
    step = max(_CHUNK // num_experts, 1)
    for start in range(0, tokens, step):
        number = min(step, tokens - start)
        place_TK = _draw(limit * size, top_k, number, rng)
        chosen_TM = _draw(groups, limit, number, rng)
        group_TK = np.take_along_axis(chosen_TM, place_TK // size, axis=1)
        ids_TK = group_TK * size + place_TK % size
        counts_N += np.bincount(ids_TK.ravel(), minlength=num_experts)
    return counts_N


def limited_sets(
    num_experts: int, top_k: int, groups: int, limit: int, best: int, tokens: int
) -> np.ndarray:
    """Return sets of experts by a group-limited router whose scores are random: int64 [T, K].

    Of the groups those with the largest sum of their `best` largest scores are taken, then of their
    experts those with the largest scores. Always the same for the same arguments.

    Args:
        num_experts: N.
        top_k: k.
        groups: D groups of consecutive experts; must divide N.
        limit: M groups of a token; they must hold k experts.
        best: 2 for DeepSeek-V3 (2412.19437), 1 for DeepSeek-V2 (2405.04434).
        tokens: T.
    """
    score_TDN = np.random.default_rng(0).random((tokens, groups, num_experts // groups))
    best_TD = np.partition(score_TDN, -best, axis=2)[..., -best:].sum(axis=2)
    left_TD = np.argpartition(-best_TD, limit - 1, axis=1)[:, limit:]
    np.put_along_axis(score_TDN, left_TD[:, :, None], -1, axis=1)
    score_TN = score_TDN.reshape(tokens, num_experts)
    return np.argpartition(-score_TN, top_k - 1, axis=1)[:, :top_k]


def _draw(number: int, chosen: int, tokens: int, rng: np.random.Generator) -> np.ndarray:
    """Draw distinct numbers below `number` for each token, uniformly: [T, chosen]."""
    if chosen == number:
        return np.broadcast_to(np.arange(number), (tokens, number))
    score = rng.random((tokens, number), dtype=np.float32)
    return np.argpartition(score, chosen, axis=1)[:, :chosen]
