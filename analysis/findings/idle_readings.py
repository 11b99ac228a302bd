"""Why experts idle for long, as far as one corpus tells: starved, reserved, or neither.

The routing of one corpus shows when an expert was used, not what it is for. What no row of these
tables can decide is left open; "idle" always means idle on this corpus.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from moe_probe.analysis.metrics.tiers import LOW
from moe_probe.analysis.statistics.idle_null import p_longest_at_least
from moe_probe.analysis.tables.layers import mean_k

SIGNIFICANT = 0.05
"""q-value below which a subject is said to use an expert more than the other subjects do."""
FEW_DOCUMENTS, FEW_SHARE = 10, 0.25
"""Documents that use an expert are few if fewer than either: their number, their share of all."""
BY_RATE = 0.05
"""Chance of so long a run at the own rate from which on no order is needed to explain it."""
READINGS = ("order", "kept", "prefixes", "few", "many", "bursts", "undecided", "light", "low")


def idle_readings(
    experts: pd.DataFrame, layers: pd.DataFrame, subjects: pd.DataFrame, window: int
) -> pd.Series:
    """Return what speaks for or against every expert that idles for `window` tokens or more.

    The first of these that holds:

        order   its longest run falls below the window once the documents are shuffled (median), and
            independent tokens at its own rate seldom leave one as long as the window
        kept    it is subject-locked; or it carries less than half a fair share, yet half or more
            on subjects that use it more than the others do
        prefixes, few, many, bursts  bursts explain the run at least as well as its rate
                (burstiness, rate_deficit): those who use it are shared prefixes alone, less than a
                quarter of the documents or than ten, more of them, or unknown
        undecided  its tier is not certified, not even below half a fair share, so that its rate may
            be low for want of tokens; or there are no shuffled orders to tell bursts by
        light   its rate explains the run, and is not certified below 10 % of the fair one
        low     its rate explains the run, and is certified to be so low

    Args:
        experts: With layer, expert, relative_load, ci_high, tier, longest_idle,
            longest_idle_shuffled, rate_deficit, burstiness and documents.
        layers: With layer, num_experts, top_k, tokens, assignments and documents.
        subjects: With layer, expert, frequency, log_odds and q_value; may be empty.
        window: In tokens.

    Returns:
        One of READINGS for every row of `experts`, "" for those that do not idle for so long.
    """
    fair = layers.assign(mean_k=mean_k(layers)).set_index("layer")
    fair = fair[["mean_k", "num_experts", "tokens"]]
    favoured = favoured_subjects(subjects).join(fair, on="layer")
    load = favoured["frequency"] * favoured["num_experts"] / favoured["mean_k"]
    used = pd.MultiIndex.from_frame(favoured.loc[load >= LOW, ["layer", "expert"]])
    is_used_somewhere = pd.MultiIndex.from_frame(experts[["layer", "expert"]]).isin(used)
    is_locked = experts["tier"].str.contains("subject-locked")
    facts = fair.loc[experts["layer"]]
    k_E, size_E, tokens_E = (facts[name].to_numpy(np.float64) for name in fair)
    rate_E = experts["relative_load"].to_numpy(np.float64) * k_E / size_E
    is_by_rate_E = p_longest_at_least(rate_E, tokens_E, window) >= BY_RATE
    in_bursts = experts["burstiness"] >= experts["rate_deficit"]
    all_E = layers.set_index("layer")["documents"].loc[experts["layer"]].to_numpy(np.float64)
    used_E = experts["documents"].to_numpy(np.float64, na_value=np.nan)
    is_few_E = (used_E < FEW_DOCUMENTS) | (used_E < FEW_SHARE * all_E)
    is_low = experts["ci_high"] < LOW
    is_uncertain = experts["tier"].str.contains("not certified")
    rules = [
        experts["longest_idle"] < window,
        (experts["longest_idle_shuffled"] < window) & ~is_by_rate_E,
        is_locked | ((experts["relative_load"] < LOW) & is_used_somewhere),
        in_bursts & (used_E == 0),
        in_bursts & is_few_E,
        in_bursts & ~np.isnan(used_E),
        in_bursts,
        experts["burstiness"].isna() | (is_uncertain & ~is_low),
        is_uncertain | experts["tier"].str.startswith("used"),
    ]
    found = np.select([rule.to_numpy(bool) for rule in rules], ["", *READINGS[:-1]], READINGS[-1])
    return pd.Series(found, index=experts.index)


def favoured_subjects(subjects: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of subjects that use an expert more than the others do, beyond chance."""
    return subjects[(subjects["q_value"] < SIGNIFICANT) & (subjects["log_odds"] > 0)]
