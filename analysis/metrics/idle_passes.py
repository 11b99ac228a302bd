"""Group C in forward passes: how many consecutive passes of the engine leave an expert idle.

What a cache or an offloaded expert sees: a pass uses an expert or does not, however many tokens it
has. Runs are measured as the passes were recorded. No order of documents can be shuffled in them,
and bursts inside a pass cannot be told from its size: what needs either is null.

Shape suffixes: N experts of a layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from moe_probe.analysis.metrics.frequency import selection_frequency
from moe_probe.analysis.metrics.idle import fair_rate

if TYPE_CHECKING:
    from moe_probe.analysis.accumulators.pass_experts import PassRuns
    from moe_probe.analysis.statistics.pass_null import PassNull

LEFT_OUT = {
    "experts": (
        *("longest_idle_shuffled", "rate_deficit", "burstiness"),
        *("burstiness_index", "burstiness_index_null"),
    ),
    "idle_windows": ("runs_shuffled", "load_expected"),
}
"""Columns that are null in this order, by table."""
WHY_LEFT_OUT = (
    "forward passes differ in their tokens and come in one order only: documents cannot be "
    "shuffled in them, nor bursts told from the sizes of passes; use the order canonical"
)


def idle_pass_table(
    counts_N: np.ndarray, tokens: int, runs: PassRuns, null: PassNull
) -> pd.DataFrame:
    """Tabulate the idle runs of one layer's experts in forward passes, as `idle.idle_table` does.

    Args:
        counts_N: Selections.
        tokens: T.
        runs: Idle runs in passes.
        null: What chance gives in the same passes.

    Returns:
        expert
        longest_idle, current_idle, leading_idle  int64, passes: the longest of any stream
        censored  never selected
        longest_idle_expected  mean longest run, passes, of tokens that select the expert
            independently at its own rate
        p_own, p_fair  chance of so long a run at the own and at the fair rate; p_own is NaN for an
            expert never selected, whose rate is unknown
    """
    own_N = selection_frequency(counts_N, tokens)
    known_N = np.where(own_N > 0, own_N, np.nan)
    fair_N = np.full(len(counts_N), fair_rate(counts_N, tokens))
    return pd.DataFrame(
        {
            "expert": np.arange(len(counts_N)),
            "longest_idle": runs.longest_N,
            "current_idle": runs.current_N,
            "leading_idle": runs.leading_N,
            "censored": counts_N == 0,
            "longest_idle_expected": null.expected_longest(own_N),
            "p_own": null.p_longest(known_N, runs.longest_N),
            "p_fair": null.p_longest(fair_N, runs.longest_N),
            **dict.fromkeys(LEFT_OUT["experts"], np.nan),
        }
    )


def idle_pass_windows_table(
    counts_N: np.ndarray, tokens: int, runs: PassRuns, windows: tuple[int, ...], null: PassNull
) -> pd.DataFrame:
    """Tabulate how often the experts of one layer idle for W passes or more.

    Args:
        counts_N: Selections.
        tokens: T.
        runs: Idle runs in passes.
        windows: The W of `runs`.
        null: What chance gives in the same passes.

    Returns:
        expert, window  all pairs
        window_tokens  mean number of counted tokens in W consecutive passes; null where no stream
            has so many passes
        runs  int64, maximal idle runs of at least W passes
        share  of the passes of all streams that lie inside such runs; null without passes
        sliding  int64, windows of W consecutive passes that all idle; they overlap
        expected_runs, expected_runs_fair  of independent tokens at the own and at the fair rate
        window_fair_intervals  `window_tokens` times the fair rate
        expected_share, expected_sliding  share and sliding at the own rate
    """
    own_N, fair = selection_frequency(counts_N, tokens), fair_rate(counts_N, tokens)
    return pd.concat(
        [
            pd.DataFrame(
                {
                    "expert": np.arange(len(counts_N)),
                    "window": window,
                    "window_tokens": null.window_tokens(window),
                    "runs": runs_N,
                    "share": selection_frequency(idle_N, runs.passes),
                    "sliding": sliding_N,
                    "expected_runs": null.expected_runs(own_N, window),
                    "expected_runs_fair": float(null.expected_runs(np.array([fair]), window)[0]),
                    "window_fair_intervals": null.window_tokens(window) * fair,
                    "expected_share": null.expected_idle_share(own_N, window),
                    "expected_sliding": null.expected_sliding(own_N, window),
                    **dict.fromkeys(LEFT_OUT["idle_windows"], np.nan),
                }
            )
            for window, runs_N, idle_N, sliding_N in zip(
                windows, runs.runs_WN, runs.idle_passes_WN, runs.sliding_WN, strict=True
            )
        ],
        ignore_index=True,
    )
