"""Idle runs of an expert that every token selects independently, at one rate p.

With p = k/N this is fair routing; with an expert's own rate it is the null of C5 and C6. An idle
run is a stretch of consecutive tokens without the expert, as long as it can be; leading and
trailing ones count. A rate of 0 gives one run of T tokens. Arguments broadcast; windows are >= 1.

Notation: T tokens, p rate, q = 1 - p, W window, L longest idle run, lambda = -ln q.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import exp1

Values = float | np.ndarray

_ALMOST_SURE = 10.0
"""With so many runs expected, the chance of none is below e^-10."""
_TERMS = 40
"""What the series leaves out is below 10^40 / 40!, which is 1e-8."""


def expected_runs(p: Values, tokens: Values, window: Values) -> np.ndarray:
    """Return the expected number of idle runs of W tokens or more: q^W (1 + (T - W) p).

    Exact: a run begins with the first token or after a selection. float64, 0 where W > T.
    """
    p, tokens, window = _rates(p, tokens, window)
    return np.where(window <= tokens, (1 - p) ** window * (1 + (tokens - window) * p), 0.0)


def expected_sliding(p: Values, tokens: Values, window: Values) -> np.ndarray:
    """Return how many of the stretches of just W tokens are idle: (T - W + 1) q^W.

    Exact. Stretches overlap: an idle run holds max(0, run - W + 1) of them.
    """
    p, tokens, window = _rates(p, tokens, window)
    return np.asarray(np.maximum(tokens - window + 1, 0) * (1 - p) ** window)


def expected_idle_share(p: Values, tokens: Values, window: Values) -> np.ndarray:
    """Return the expected share of tokens in idle runs of W or more: [0, 1], NaN without tokens.

    Exact: a run of W or more has W - 1 tokens more than it holds stretches of W.
    """
    p, tokens, window = _rates(p, tokens, window)
    inside = expected_sliding(p, tokens, window) + (window - 1) * expected_runs(p, tokens, window)
    return np.asarray(inside / np.where(tokens > 0, tokens, np.nan))


def p_longest_at_least(p: Values, tokens: Values, window: Values) -> np.ndarray:
    """Return P(L >= W), the chance of any idle run of W tokens or more.

    The sum over j >= 1 of (-1)^(j+1) (p q^W)^(j-1) q^W [C(T - jW, j-1) + p C(T - jW, j)]: of j
    runs that long, the first begins with the first token or later (inclusion and exclusion).
    Exact to 1e-7 up to ten expected runs; beyond, 1 - exp(-expected_runs), where both are within
    5e-5 of 1. Source: de Moivre's problem of runs (Feller, volume 1, chapter XIII.7).

    C5: p_own has an expert's own frequency as p and its longest run as W, p_uni has k/N. p_own
    leans on the data that it tests, which makes it conservative.
    """
    p, tokens, window = _rates(p, tokens, window)
    expected = expected_runs(p, tokens, window)
    idle = (1 - p) ** window
    step = np.where(expected < _ALMOST_SURE, p * idle, 0.0)
    chance = np.zeros(expected.shape)
    for j in range(1, _TERMS + 1):
        room = tokens - j * window
        # Powers and binomials apart would overflow.
        i = np.arange(j - 1.0).reshape(-1, *[1] * expected.ndim)
        factors = np.maximum(room - i, 0) * step / (i + 1)
        first = np.where(room >= 0, idle, 0.0)
        term = np.multiply.reduce(np.concatenate([first[None], factors]))
        chance -= (-1) ** j * term * (1 + np.maximum(room - j + 1, 0) * p / j)
    chance = np.clip(chance, 0, 1)
    return np.where(expected < _ALMOST_SURE, chance, -np.expm1(-expected))


def expected_longest_run(p: Values, tokens: Values) -> np.ndarray:
    """Return the expected longest idle run, in tokens: [0, T].

    (ln mu + 0.5772 + E1(mu)) / lambda - 1/2 - exp(-mu) / 2 with mu = (T + 1) p: the mean of the
    longest piece of a stick broken at Poisson(mu) places, and a correction for whole tokens. For
    large mu it is the usual (ln(T p) + 0.5772) / lambda - 1/2. Within 0.1 token or 0.2 %,
    whichever is more, for p <= 1/2 and any T.
    """
    p, tokens = _rates(p, tokens)
    rate = np.where((p == 0) | (p == 1), 0.5, p)
    mu = (tokens + 1) * rate
    stick = (np.log(mu) + np.euler_gamma + exp1(mu)) / -np.log1p(-rate)
    longest = np.clip(stick - (1 + np.exp(-mu)) / 2, 0, tokens)
    return np.where(p == 0, tokens, np.where(p == 1, 0.0, longest))


def sd_longest_run(p: Values, tokens: Values) -> np.ndarray:
    """Return the standard deviation of the longest idle run, in tokens; NaN where T p < 20.

    sqrt((pi^2 / 6 - (2 ln(T p) + 0.1544) / (T p)) / lambda^2 + 1/12): Gumbel's variance, less what
    the pieces of one stick share (first order in 1 / (T p)), and that of rounding to whole
    tokens. Within 3 % for p <= 1/2.
    """
    p, tokens = _rates(p, tokens)
    rate = np.where((tokens * p >= 20) & (p < 1), p, np.nan)
    mu = tokens * rate
    shared = (2 * (np.log(mu) + np.euler_gamma) - 1) / mu
    return np.asarray(np.sqrt((math.pi**2 / 6 - shared) / np.log1p(-rate) ** 2 + 1 / 12))


def longest_run_quantile(
    p: Values, tokens: Values, experts: Values, probability: float
) -> np.ndarray:
    """Return the run length that the longest of n experts' runs stays below with a probability.

    W with n expected_runs(W) = -ln(probability), in tokens, not rounded, for n independent
    experts with the same rate; T where p is 0.
    """
    p, tokens, experts = _rates(p, tokens, experts)
    rate = np.where((p == 0) | (p == 1), 0.5, p)
    window = np.zeros(rate.shape)
    for _ in range(50):
        runs = experts * (1 + (tokens - window) * rate) / -math.log(probability)
        window = np.clip(np.log(runs) / -np.log1p(-rate), 0, tokens)
    return np.where(p == 0, tokens, np.where(p == 1, 0.0, window))


def rate_for_longest_run(longest: Values, tokens: Values) -> np.ndarray:
    """Return the rate p whose expected longest idle run is `longest`; NaN outside (0, T).

    A relative load is p N / k. Bisection on ln p, to 1e-12 of its value.
    """
    longest, tokens = _floats(longest, tokens)
    low, high = np.full(longest.shape, -40.0), np.zeros(longest.shape)
    for _ in range(60):
        middle = (low + high) / 2
        is_longer = expected_longest_run(np.exp(middle), tokens) > longest
        low, high = np.where(is_longer, middle, low), np.where(is_longer, high, middle)
    return np.where((longest > 0) & (longest < tokens), np.exp(low), np.nan)


def geometric_burstiness(p: Values) -> np.ndarray:
    """Return Goh-Barabasi (sd - mean) / (sd + mean) of the steps between selections.

    (sqrt(q) - 1) / (sqrt(q) + 1), in [-1, 0]; NaN for p = 0, where nothing is selected.
    Source: Goh and Barabasi (2008).
    """
    (p,) = _rates(p)
    root = np.sqrt(1 - np.where(p > 0, p, np.nan))
    return np.asarray((root - 1) / (root + 1))


def _rates(p: Values, *values: Values) -> tuple[np.ndarray, ...]:
    # Rows that name an expert twice count it more often than there are tokens.
    return _floats(np.minimum(p, 1), *values)


def _floats(*values: Values) -> tuple[np.ndarray, ...]:
    return tuple(np.broadcast_arrays(*(np.asarray(value, np.float64) for value in values)))
