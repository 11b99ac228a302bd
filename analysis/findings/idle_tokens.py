"""The sentence on idle experts where idle runs are counted in tokens.

Shape suffixes: L layers, E experts of all layers.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from moe_probe.analysis.findings.idle_readings import idle_readings
from moe_probe.analysis.findings.wording import (
    CHANCE,
    UNKNOWN,
    favoured_names,
    listed,
    name_of,
    no_window,
    none_idle,
)
from moe_probe.analysis.reading.orders import TOKENS
from moe_probe.analysis.statistics.idle_null import p_longest_at_least
from moe_probe.analysis.tables.layers import mean_k

_READINGS = {
    "order": "only in this order of the documents (in most shuffled orders no run is so long)",
    "kept": "kept for some subjects (used less on the others)",
    "low": (
        "certified below 10% of their fair share on all subjects together, and not used much more "
        "on any (starved, or kept for other text: this corpus alone cannot tell)"
    ),
    "light": "used less than their fair share, which explains such runs",
    "prefixes": "used by shared prefixes alone",
    "few": "used in bursts, by few documents",
    "many": "used in bursts, by many documents",
    "bursts": "used in bursts",
    "undecided": "undecided (too little is known of their loads to tell)",
}

_SHORT_DOCUMENTS = (
    "Documents are too short for a window that tells an idle run inside one from chance: use "
    "the order canonical, or other windows."
)


def idle_in_tokens(
    experts: pd.DataFrame, layers: pd.DataFrame, idle_windows: pd.DataFrame, subjects: pd.DataFrame
) -> list[str]:
    """Say how many experts idle for longer than chance explains, and what speaks for which reason.

    Args:
        experts, layers, subjects: As `idle_readings` takes them.
        idle_windows: As `telling_window` takes it.
    """
    if experts["longest_idle"].isna().all():
        return [UNKNOWN]
    window = telling_window(idle_windows, layers)
    if window is None:
        windows, longest = idle_windows["window"], layers["tokens"].max()
        if not _has_room(idle_windows, layers, longest):
            return [_SHORT_DOCUMENTS]
        return [no_window(windows, TOKENS, is_short=windows.max() > longest)]
    if not (experts["longest_idle"] >= window).any():
        return [none_idle(experts, _chances(experts, layers), window, TOKENS)]
    reading = idle_readings(experts, layers, subjects, window)
    idle = experts[reading != ""].sort_values("longest_idle", ascending=False, kind="stable")
    parts = []
    for name, text in _READINGS.items():
        those = idle[reading[idle.index] == name]
        if those.empty:
            continue
        favoured = favoured_names(subjects, those.iloc[0]) if name == "kept" else []
        on = f" on {listed(favoured)}" if favoured else ""
        parts.append(f"{len(those):,} {text}, such as {name_of(those.iloc[0])}{on}")
    return [
        f"{len(idle):,} of {len(experts):,} experts idle for {window:,} tokens in a row or more "
        f"(the longest run: {int(idle['longest_idle'].iloc[0]):,}), which chance does not explain: "
        f"{'; '.join(parts)}."
    ]


def telling_window(idle_windows: pd.DataFrame, layers: pd.DataFrame) -> int | None:
    """Return the shortest window that fair routing almost never leaves any expert idle for.

    Almost never: in fewer than one of 1,000 such traces, by the expected runs of all experts.

    Args:
        idle_windows: With window, in tokens, and expected_runs_fair.
        layers: With num_experts, top_k, tokens and assignments.

    Returns:
        Tokens; None where no window of the table is that telling, or none fits into the trace, or,
        in the order request-local, into a document.
    """
    experts_L, longest = layers["num_experts"].to_numpy(np.float64), layers["tokens"].max()
    for window in sorted(idle_windows["window"].unique().tolist()):
        expected = (experts_L * _fair_chances(layers, window)).sum()
        if window <= longest and expected < CHANCE and _has_room(idle_windows, layers, window):
            return int(window)
    return None


def _has_room(idle_windows: pd.DataFrame, layers: pd.DataFrame, window: int) -> bool:
    """Tell whether documents that no run leaves are as long as every window up to this one."""
    shorter = idle_windows[idle_windows["window"] <= window]
    most = shorter.groupby("window")["expected_runs_fair"].max()
    # Documents that leave no run where one stream may are shorter. Both may be too rare for a
    # number, and then shorter windows tell.
    pairs = zip(most.index.tolist(), most.tolist(), strict=True)
    return not any(runs == 0 and _fair_chances(layers, one).any() for one, runs in pairs)


def _fair_chances(layers: pd.DataFrame, window: int) -> np.ndarray:
    """Return the chance of fair routing in one stream to leave an expert idle so long: [L]."""
    rate_L = mean_k(layers) / layers["num_experts"].to_numpy(np.float64)
    return p_longest_at_least(rate_L, layers["tokens"].to_numpy(np.float64), window)


def _chances(experts: pd.DataFrame, layers: pd.DataFrame) -> np.ndarray:
    """Return the chance of fair routing to leave an expert idle for as long as each one is: [E]."""
    rates = mean_k(layers) / layers["num_experts"].to_numpy(np.float64)
    facts = layers.assign(rate=rates).set_index("layer").loc[experts["layer"]]
    rate_E, tokens_E = (facts[name].to_numpy(np.float64) for name in ("rate", "tokens"))
    return p_longest_at_least(rate_E, tokens_E, experts["longest_idle"].to_numpy(np.float64))
