"""C1 and C2: experts that no counted token selected, and how soon the others appear.

Shape suffixes: N experts of a layer, R shuffled orders of the documents, X stream lengths.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.special import bdtr

from moe_probe.analysis.metrics.frequency import relative_load, selection_frequency
from moe_probe.analysis.metrics.idle import fair_rate
from moe_probe.analysis.statistics.random_sets import own_rate_seen


def experts_below(counts_N: np.ndarray, limit: float) -> np.ndarray:
    """Return the number of experts whose relative load, as counted, is below a limit.

    Range [0, N); the never selected are among them. NaN where nothing was selected.
    """
    below = (relative_load(counts_N) < limit).sum(axis=-1)
    return np.where(counts_N.sum(axis=-1) > 0, below, np.nan)


def experts_below_null(
    num_experts: int, tokens: np.ndarray | int, fair: np.ndarray | float, limit: float
) -> np.ndarray:
    """Return `experts_below` of independent tokens: N P(Binomial(T, p) < limit T p).

    Args:
        num_experts: N.
        tokens: T, [...].
        fair: p = A / (T N), [...]; NaN where nothing was selected.
        limit: Of the relative load.

    Returns:
        float64 [...]; NaN where p is. Tokens of a document resemble each other, so text leaves more
        experts below: a lower bound.
    """
    # The largest count that is strictly below the limit.
    most = np.ceil(limit * np.asarray(fair) * tokens) - 1
    chance = bdtr(np.maximum(most, 0), tokens, fair)
    return np.where(most < 0, 0.0, num_experts * chance)


def unseen_mass(documents_seen_N: np.ndarray) -> float:
    """Return the Good-Turing estimate of how much of further use falls on unseen experts.

    f1 / sum of n, with n the documents that select an expert and f1 the experts with n = 1.

    Args:
        documents_seen_N: Documents that select each expert.

    Returns:
        Share in [0, 1] of the (document, expert) incidences of one more document; NaN where no
        document selects any expert. Source: Good (1953).
    """
    total = documents_seen_N.sum()
    return float((documents_seen_N == 1).sum() / total) if total else np.nan


def chao2(documents_seen_N: np.ndarray) -> float:
    """Return Chao2's lower bound on the experts that any number of such documents would select.

    seen + f1^2 / (2 f2), and seen + f1 (f1 - 1) / 2 where f2 is 0, with f_j the experts that
    exactly j documents select; never above N, which is known here.

    Args:
        documents_seen_N: Documents that select each expert.

    Returns:
        Experts, in [seen, N]; NaN where no document selects any. Source: Chao (1987).
    """
    seen, once, twice = ((documents_seen_N > 0).sum(), *(documents_seen_N == j for j in (1, 2)))
    f1, f2 = int(once.sum()), int(twice.sum())
    missing = f1**2 / (2 * f2) if f2 else f1 * (f1 - 1) / 2
    return min(float(seen + missing), float(len(documents_seen_N))) if seen else np.nan


def coverage_curve(first_seen_RN: np.ndarray, counts_N: np.ndarray, tokens: int) -> pd.DataFrame:
    """Tabulate how many experts of one layer the first x tokens of a stream have selected.

    `own` above `seen` is burstiness; `fair` above `own` is unequal rates.

    Args:
        first_seen_RN: Token at which each expert is first selected in R shuffled orders of the
            documents, from 0; -1 for never.
        counts_N: Selections.
        tokens: T.

    Returns:
        tokens  x, about ten per decade, from 1 to T; no rows where T is 0
        seen  experts, mean over the orders; null without any
        fair  N (1 - (1 - p)^x) at the fair rate: exact under exchangeable top-k (N0)
        own  sum of 1 - (1 - p_e)^x: each expert at its own rate, independent tokens (N1)
    """
    x_X = _log_grid(tokens)
    first_P = np.sort(first_seen_RN[first_seen_RN >= 0])
    orders = len(first_seen_RN) or np.nan
    return pd.DataFrame(
        {
            "tokens": x_X,
            "seen": np.searchsorted(first_P, x_X, side="left") / orders,
            "fair": own_rate_seen(np.full(len(counts_N), fair_rate(counts_N, tokens)), x_X),
            "own": own_rate_seen(selection_frequency(counts_N, tokens), x_X),
        }
    )


def _log_grid(tokens: int) -> np.ndarray:
    if not tokens:
        return np.empty(0, np.int64)
    points = round(10 * np.log10(tokens)) + 1
    return np.unique(np.geomspace(1, tokens, points).round().astype(np.int64))
