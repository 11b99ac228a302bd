"""The number of successes of independent trials that have chances of their own.

Shape suffixes: M numbers of successes, from 0.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np


def successes(chances: Iterable[float]) -> np.ndarray:
    """Return the chance of each number of successes, Poisson-binomial: float64 [trials + 1].

    Args:
        chances: Of each trial to succeed, in [0, 1].
    """
    chance_M = np.ones(1)
    for chance in chances:
        chance_M = np.asarray(np.convolve(chance_M, [1 - chance, chance]))
    return chance_M
