"""C6 under chance: where independent tokens lie in the plot of rate deficit and burstiness.

Shape suffixes: X selection frequencies.
"""

from __future__ import annotations

import numpy as np

from moe_probe.analysis.statistics.idle_null import expected_longest_run, p_longest_at_least
from moe_probe.analysis.statistics.undefined import positive


def independent_band(
    frequency_X: np.ndarray, fair: float, tokens: int, *, coverage: float = 0.95
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return rate deficits and the band of burstiness that independent tokens give (N1).

    Args:
        frequency_X: Selection frequencies p, each in (0, 1).
        fair: The fair rate, k / N.
        tokens: T, at least 1.
        coverage: Of the band.

    Returns:
        ln(L_own / L_fair), and the lower and upper end of ln(longest / L_own), float64 [X] each,
        in nats; NaN where no idle run is expected, or where the end is a run of no tokens.
    """
    own_X = positive(expected_longest_run(frequency_X, tokens))
    deficit_X = np.log(own_X / positive(expected_longest_run(fair, tokens)))
    low_X, high_X = (
        np.log(positive(longest_run_quantile(frequency_X, tokens, level)) / own_X)
        for level in ((1 - coverage) / 2, (1 + coverage) / 2)
    )
    return deficit_X, low_X, high_X


def longest_run_quantile(frequency_X: np.ndarray, tokens: int, level: float) -> np.ndarray:
    """Return the smallest w with P(longest idle run <= w) >= level: int64 [X], in [0, T].

    Of independent tokens at rate p; by bisection of `p_longest_at_least`.
    """
    low_X = np.zeros(np.shape(frequency_X), np.int64)
    high_X = np.full(np.shape(frequency_X), tokens)
    while (low_X < high_X).any():
        middle_X = (low_X + high_X) // 2
        is_enough_X = 1 - p_longest_at_least(frequency_X, tokens, middle_X + 1) >= level
        high_X = np.where(is_enough_X, middle_X, high_X)
        low_X = np.where(is_enough_X, low_X, middle_X + 1)
    return high_X
