"""Group C: how long experts idle, and how much of that is a low rate and how much is bursts.

An idle run is a stretch of consecutive tokens, in a named token order, that do not select the
expert. It is measured against two rates of independent tokens: the expert's own, p = c / T, and
the fair one, A / (T N), which is k / N where every slot is filled.

Shape suffixes: N experts of a layer, R shuffled orders of the documents, X different lengths.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from moe_probe.analysis.metrics.frequency import selection_frequency
from moe_probe.analysis.statistics.idle_null import (
    expected_idle_share,
    expected_longest_run,
    expected_runs,
    expected_sliding,
    geometric_burstiness,
    p_longest_at_least,
    rate_for_longest_run,
)
from moe_probe.analysis.statistics.undefined import positive

if TYPE_CHECKING:
    from collections.abc import Callable

    from moe_probe.analysis.accumulators.gaps import IdleRuns
    from moe_probe.analysis.statistics.idle_null import Values


def fair_rate(counts_N: np.ndarray, tokens: int) -> float:
    """Return A / (T N), the selection frequency of every expert under even load; NaN if T is 0."""
    return float(selection_frequency(counts_N, tokens).mean())


def rate_deficit(counts_N: np.ndarray, tokens: int) -> np.ndarray:
    """Return ln(L_own / L_fair): how much longer the longest run is due to a rate below fair.

    L is the mean longest run of independent tokens, at the own and at the fair rate. Together
    with `burstiness` it adds up to ln(longest / L_fair).

    Returns:
        float64 [N] in nats; 0 at fair load, positive below it. NaN where no run is expected: at
        rates near 1, and without tokens.
    """
    own_N = expected_longest_run(selection_frequency(counts_N, tokens), tokens)
    return _log_ratio(own_N, expected_longest_run(fair_rate(counts_N, tokens), tokens))


def burstiness(longest_N: np.ndarray, counts_N: np.ndarray, tokens: int) -> np.ndarray:
    """Return ln(longest / L_own): how much longer the longest run is due to uses in bursts.

    Args:
        longest_N: Longest idle run of each expert, in tokens.
        counts_N: Selections, [N].
        tokens: T.

    Returns:
        float64 [N] in nats; about 0 for independent tokens and, since its run is T in any case,
        0 for an expert never selected. NaN where there is no run or none is expected.
    """
    return _log_ratio(
        longest_N, expected_longest_run(selection_frequency(counts_N, tokens), tokens)
    )


def burstiness_index(
    gap_sum_N: np.ndarray, gap_square_sum_N: np.ndarray, gap_number_N: np.ndarray
) -> np.ndarray:
    """Return B = (sd - mean) / (sd + mean) of the distance from one selection to the next.

    The distance is the gap between the two plus 1; sd is the population's.

    Args:
        gap_sum_N: Sum of the internal gaps, those between two selections.
        gap_square_sum_N: Sum of their squares.
        gap_number_N: Their number.

    Returns:
        float64 [N] in [-1, 1): -1 for equal distances, `geometric_burstiness(p)` for independent
        tokens, towards 1 for bursts. NaN with fewer than two gaps. Source: Goh & Barabasi (2008).
    """
    number_N = np.where(gap_number_N > 1, gap_number_N, np.nan)
    gap_N = gap_sum_N / number_N
    sd_N = np.sqrt(np.maximum(gap_square_sum_N / number_N - gap_N**2, 0.0))
    return np.asarray((sd_N - gap_N - 1) / (sd_N + gap_N + 1))


def gap_test(
    longest_N: np.ndarray, counts_N: np.ndarray, tokens: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return p_own and p_fair: how often independent tokens give a run as long as the longest.

    Args:
        longest_N: Longest idle run of each expert, in tokens.
        counts_N: Selections, [N].
        tokens: T.

    Returns:
        float64 [N] each, at the own and at the fair rate. p_own is slightly conservative, since
        rate and run are of the same tokens, and NaN for an expert never selected, whose rate is
        unknown. Real text comes in bursts: a small p_own is the rule and marks nothing unusual.
    """
    own_N = selection_frequency(counts_N, tokens)
    p_own_N = p_longest_at_least(np.where(own_N > 0, own_N, np.nan), tokens, longest_N)
    return p_own_N, p_longest_at_least(fair_rate(counts_N, tokens), tokens, longest_N)


def idle_table(counts_N: np.ndarray, runs: IdleRuns, longest_RN: np.ndarray) -> pd.DataFrame:
    """Tabulate the idle runs of one layer's experts.

    Args:
        counts_N: Selections.
        runs: Idle runs in the canonical order.
        longest_RN: Longest runs in R shuffled orders of the documents; R may be 0.

    Returns:
        expert
        longest_idle, current_idle, leading_idle  int64, tokens
        censored  never selected: the three are T, and the true runs may be longer
        longest_idle_shuffled  median over the shuffled orders; null without any
        longest_idle_expected  mean longest run at the own rate, tokens, in one stream of T tokens
            as the shuffled orders are, whatever the order of `runs`
        rate_deficit, burstiness  nats, the latter of the shuffled orders: null without any
        burstiness_index, burstiness_index_null  Goh & Barabasi, and of independent tokens
        p_own, p_fair  of the gap test in shuffled orders
    """
    tokens = runs.tokens
    orders_RN = longest_RN if len(longest_RN) else np.full((1, len(counts_N)), np.nan)
    shuffled_N = np.median(orders_RN, axis=0)
    own_N = selection_frequency(counts_N, tokens)
    p_own_N, p_fair_N = gap_test(shuffled_N, counts_N, tokens)
    return pd.DataFrame(
        {
            "expert": np.arange(len(counts_N)),
            "longest_idle": runs.longest_N,
            "current_idle": runs.current_N,
            "leading_idle": runs.leading_N,
            "censored": counts_N == 0,
            "longest_idle_shuffled": shuffled_N,
            "longest_idle_expected": expected_longest_run(own_N, tokens),
            "rate_deficit": rate_deficit(counts_N, tokens),
            "burstiness": burstiness(shuffled_N, counts_N, tokens),
            "burstiness_index": burstiness_index(
                runs.gap_sum_N, runs.gap_square_sum_N, runs.gap_number_N
            ),
            "burstiness_index_null": geometric_burstiness(own_N),
            "p_own": p_own_N,
            "p_fair": p_fair_N,
        }
    )


def idle_windows_table(
    counts_N: np.ndarray, runs: IdleRuns, windows: tuple[int, ...], stretches_2X: np.ndarray
) -> pd.DataFrame:
    """Tabulate how often the experts of one layer idle for W tokens or more.

    Args:
        counts_N: Selections.
        runs: Idle runs, in the order that the table is to be of.
        windows: The W of `runs`, in tokens.
        stretches_2X: Lengths of the stretches of tokens that no run leaves, and how many there are
            of each length: T and 1, or those of documents in the order request-local.

    Returns:
        expert, window  all pairs
        runs  int64, maximal idle runs of at least W tokens
        share  of the tokens that lie inside such runs; null without tokens
        sliding  int64, windows of W consecutive tokens that all idle; they overlap
        expected_runs, expected_runs_fair  of independent tokens at the own and at the fair rate, in
            as many stretches of the same lengths
        window_fair_intervals  W times the fair rate: W in mean distances between selections under
            even load, the unit in which models compare
        expected_share, expected_sliding  share and sliding of the same tokens, at the own rate
        load_expected  relative load of which the longest run of T independent tokens has W on
            average, in one stream; null where W is not between 0 and T, and without selections
    """
    tokens = runs.tokens
    fair = fair_rate(counts_N, tokens)
    own_N = selection_frequency(counts_N, tokens)
    load_W = rate_for_longest_run(np.array(windows), tokens) / positive(fair)
    tables = [
        pd.DataFrame(
            {
                "expert": np.arange(len(counts_N)),
                "window": window,
                "runs": runs_N,
                "share": selection_frequency(idle_N, tokens),
                "sliding": sliding_N,
                "expected_runs": _expected_in_all(own_N, stretches_2X, window, expected_runs),
                "expected_runs_fair": float(
                    _expected_in_all(fair, stretches_2X, window, expected_runs)
                ),
                "window_fair_intervals": window * fair,
                "expected_share": _expected_in_all(own_N, stretches_2X, window, _idle_tokens)
                / (tokens or np.nan),
                "expected_sliding": _expected_in_all(own_N, stretches_2X, window, expected_sliding),
                "load_expected": load,
            }
        )
        for window, runs_N, idle_N, sliding_N, load in zip(
            windows, runs.runs_WN, runs.idle_tokens_WN, runs.sliding_WN, load_W, strict=True
        )
    ]
    return pd.concat(tables, ignore_index=True)


def _expected_in_all(
    rate: Values,
    stretches_2X: np.ndarray,
    window: int,
    expected: Callable[[Values, Values, Values], np.ndarray],
) -> np.ndarray:
    """Return what is expected of windows of W in all stretches together: shape of the rate."""
    length_X, number_X = stretches_2X[:, stretches_2X[0] >= window]
    return np.asarray(expected(np.asarray(rate)[..., None], length_X, window) @ number_X)


def _idle_tokens(rate: Values, tokens: Values, window: Values) -> np.ndarray:
    return np.asarray(expected_idle_share(rate, tokens, window) * tokens)


def _log_ratio(over_N: np.ndarray, under_N: np.ndarray) -> np.ndarray:
    is_defined_N = (over_N > 0) & (under_N > 0)
    ratio_N = np.divide(over_N, under_N, where=is_defined_N, out=np.ones(np.shape(over_N)))
    return np.where(is_defined_N, np.log(ratio_N), np.nan)
