"""Words that several sentences share, and from when on they speak of more than chance."""

from __future__ import annotations

import pandas as pd

from moe_probe.analysis.findings.idle_readings import favoured_subjects

CHANCE = 0.001
"""How often fair routing may give, anywhere in a trace, what a sentence calls more than chance."""
NUM_NAMED = 3
"""Subjects that a sentence names before it only counts them."""

UNKNOWN = "Idle runs are unknown: they need rows, and each counted once."
TOO_SHORT = "The trace is too short to tell a long idle run from chance."


def none_idle(window: int, unit: str) -> str:
    """Say that no expert idles for a window."""
    return f"No expert idles for {window:,} {unit} in a row: nothing exceeds chance."


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
