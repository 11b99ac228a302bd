"""The sentence on idle experts where idle runs are counted in forward passes."""

from __future__ import annotations

import numpy as np
import pandas as pd

from moe_probe.analysis.findings.wording import (
    CHANCE,
    UNKNOWN,
    name_of,
    no_window,
    none_idle,
)
from moe_probe.analysis.reading.orders import PASSES


def idle_in_passes(experts: pd.DataFrame, idle_windows: pd.DataFrame) -> list[str]:
    """Say how many experts idle for longer than chance explains, not why: that takes an order of
    tokens, which can be shuffled.

    Args:
        experts: With layer, expert, longest_idle and p_fair.
        idle_windows: With window, window_tokens and expected_runs_fair.
    """
    if experts["longest_idle"].isna().all():
        return [UNKNOWN]
    window = telling_pass_window(idle_windows)
    if window is None:
        is_short = bool(idle_windows["window_tokens"].isna().any())
        return [no_window(idle_windows["window"], PASSES, is_short=is_short)]
    idle = experts[experts["longest_idle"] >= window]
    if idle.empty:
        return [none_idle(experts, experts["p_fair"].to_numpy(np.float64), window, PASSES)]
    tokens = idle_windows.loc[idle_windows["window"] == window, "window_tokens"].iloc[0]
    longest = idle.sort_values("longest_idle", ascending=False, kind="stable").iloc[0]
    return [
        f"{len(idle):,} of {len(experts):,} experts idle for {window:,} {PASSES} in a row or more "
        f"({tokens:,.0f} tokens on average), which chance does not explain; the longest run is of "
        f"{name_of(longest)}: {int(longest['longest_idle']):,} passes. Why they do is read off "
        "runs of tokens: use the order canonical."
    ]


def telling_pass_window(idle_windows: pd.DataFrame) -> int | None:
    """Return the shortest window that fair routing almost never leaves any expert idle for.

    As `idle_tokens.telling_window`, by the expected runs of all experts.

    Args:
        idle_windows: With window, window_tokens and expected_runs_fair, of forward passes.

    Returns:
        Passes; None where no window of the table is that telling, or none fits into a stream.
    """
    fitting = idle_windows.dropna(subset="window_tokens")
    expected = fitting.groupby("window")["expected_runs_fair"].sum()
    telling = expected.index[expected < CHANCE]
    return int(telling.min()) if len(telling) else None
