"""The table `idle_windows`: one row per expert and window.

Shape suffixes: S groups (task, subject, area), N experts of a layer, R orders, W windows, X facts.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from moe_probe.analysis.layer_state import LayerState
from moe_probe.analysis.metrics.idle import idle_windows_table
from moe_probe.analysis.metrics.idle_passes import idle_pass_windows_table
from moe_probe.analysis.sums import Sums


def idle_windows(sums: Sums) -> pd.DataFrame:
    """Tabulate how often every expert idles for each window or longer.

    Returns:
        layer, expert, window  all of them
        runs  maximal idle runs of at least that many tokens, in the order asked for
        share  of the tokens that lie in such runs; null without tokens
        expected_runs  of independent tokens at the expert's own rate; in the order request-local
            of as many documents of the same lengths, in forward passes of the same passes, else
            of one stream
        expected_runs_fair  at the fair rate
        sliding  windows of that many consecutive tokens that lie in such runs
        runs_shuffled  median over shuffled orders of the documents; null without any
        window_fair_intervals  the window in mean distances between selections under even load
        window_tokens  the window in tokens: of forward passes the mean over so many in a row
        unit  of window and runs: tokens, or forward passes for tokens in all of the above
        expected_share, expected_sliding  share and sliding at the own rate, as expected_runs
        load_expected  relative load at which the longest run of independent tokens, in one stream
            of T, has the window on average: who idles so long has less, or is used in bursts.
            Null where the window is not below T, and in forward passes
    """
    tables = []
    for layer, state in sums.layers.items():
        table = _windows(sums, layer, state)
        if table is not None:
            table.insert(0, "layer", layer)
            tables.append(table.assign(unit=sums.settings.order.unit))
    names = ["layer", "expert", "window", "runs", "share", "expected_runs", "expected_runs_fair"]
    names += ["sliding", "runs_shuffled", "window_fair_intervals", "window_tokens", "unit"]
    names += ["expected_share", "expected_sliding", "load_expected"]
    return pd.concat(tables, ignore_index=True)[names] if tables else pd.DataFrame(columns=names)


def _windows(sums: Sums, layer: int, state: LayerState) -> pd.DataFrame | None:
    counts_SN, tokens_S = sums.by_group(layer)
    counts_N, windows = counts_SN.sum(axis=0), sums.settings.windows
    if state.passes is not None and sums.pass_null is not None:
        facts = (counts_N, int(tokens_S.sum()), state.passes, windows, sums.pass_null)
        return idle_pass_windows_table(*facts)
    if state.idle is None:
        return None
    table = idle_windows_table(counts_N, state.idle.runs, windows, state.idle.stretches_2X)
    runs_RWN = state.idle.runs_RWN
    shuffled_WN = np.full(runs_RWN.shape[1:], np.nan)
    if len(runs_RWN):
        shuffled_WN = np.median(runs_RWN, axis=0)
    return table.assign(runs_shuffled=shuffled_WN.ravel(), window_tokens=table["window"])
