"""Words that several sentences share, and from when on they speak of more than chance.

Shape suffixes: E experts of all layers.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from moe_probe.analysis.findings.idle_readings import favoured_subjects

CHANCE = 0.001
"""How often fair routing may give, anywhere in a trace, what a sentence calls more than chance."""
NUM_NAMED = 3
"""Subjects that a sentence names before it only counts them."""

UNKNOWN = "Idle runs are unknown: they need rows, and each counted once."


def none_idle(experts: pd.DataFrame, p_E: np.ndarray, window: int, unit: str) -> str:
    """Say that no expert idles for a window, and whether one does for less beyond chance.

    Args:
        experts: With layer, expert and longest_idle.
        p_E: Chance of fair routing to leave an expert idle for as long as each one is.
        window: Of those that fair routing almost never leaves any expert idle for.
        unit: Of idle runs.
    """
    least = int(np.nanargmin(p_E))
    text = f"No expert idles for {window:,} {unit} in a row"
    if p_E[least] * len(experts) >= CHANCE:
        return f"{text}: nothing exceeds chance."
    run = int(experts["longest_idle"].iloc[least])
    return (
        f"{text}; the run of {run:,} without {name_of(experts.iloc[least])} is longer than "
        "random routing leaves."
    )


def no_window(windows: pd.Series, unit: str, *, is_short: bool) -> str:
    """Say that no window tells, because the trace is short or because they are.

    Args:
        windows: All that were asked for.
        unit: Theirs.
        is_short: Whether one of them does not fit into the trace.
    """
    if is_short:
        return "The trace is too short to tell a long idle run from chance."
    return f"Chance may leave experts idle for {windows.max():,} {unit}: ask for longer windows."


def name_of(expert: pd.Series) -> str:
    """Name the expert of a row."""
    return f"expert {int(expert['expert'])} of layer {int(expert['layer'])}"


def favoured_names(subjects: pd.DataFrame, expert: pd.Series) -> list[str]:
    """Name the subjects that use the expert of a row more than others do, the clearest first."""
    is_this = (subjects["layer"] == expert["layer"]) & (subjects["expert"] == expert["expert"])
    favoured = favoured_subjects(subjects[is_this]).sort_values("log_odds", ascending=False)
    return [str(name) for name in favoured["subject"]]


def listed(names: list[str]) -> str:
    """Join names, of many the first ones and how many more there are."""
    more = len(names) - NUM_NAMED
    return ", ".join(names[:NUM_NAMED]) + (f" and {more} more" if more > 0 else "")
