"""How many experts tokens select, where routers may leave slots empty.

Shape suffixes: S subjects, all of them first, H experts of a token, from 0 to k.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from moe_probe.analysis.accumulators.fanout import DeviceFanout
from moe_probe.analysis.reading.index import subject_names
from moe_probe.analysis.reading.rules import Rule
from moe_probe.analysis.scan import Progress
from moe_probe.analysis.statistics.undefined import positive
from moe_probe.analysis.studies.scanning import AnyTrace, facts_of, fill, source_of, stacked


def experts_per_token(
    trace: AnyTrace,
    *,
    rule: Rule | str | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Tabulate how many experts tokens select, k_t.

    All tokens of most routers select as many; those with null experts or a threshold leave slots
    empty, and may spend more experts on some text than on other. `mean_k` of the table `layers` is
    the mean.

    Args:
        trace: The trace, or where it lies.
        rule: Which tokens count; the trace's default rule if None.
        threads: Threads of the scan; all processors if None.
        progress: Called with the number of layers done, and of all.

    Returns:
        One row per layer, subject and number of experts, and first those over all subjects.
        layer
        subject  "" for all
        experts  k_t, from 0 to top_k
        tokens  that select so many
        share  of the subject's tokens; null without any
        share_null  binomial, with the same mean: every slot is filled with the same chance,
            whatever the token. Wider than it: the router tells tokens apart

    Raises:
        TraceError: the trace has no per-token rows, or is damaged.
        ValueError: there is no such rule.
    """
    from scipy.stats import binom

    source = source_of(trace)
    sizes = DeviceFanout(*facts_of(source, rule), devices=())
    fill(source, [sizes], threads, progress)
    subjects = ["", *subject_names(source.index.groups)]

    def table(slots_SH: np.ndarray) -> pd.DataFrame:
        slots_SH = np.concatenate([slots_SH.sum(axis=0, keepdims=True), slots_SH])
        experts_H = np.arange(slots_SH.shape[1])
        tokens_S1, most = positive(slots_SH.sum(axis=1, keepdims=True)), len(experts_H) - 1
        filled_S1 = slots_SH @ experts_H[:, None] / tokens_S1 / most
        return pd.DataFrame(
            {
                "subject": np.repeat(subjects, len(experts_H)),
                "experts": np.tile(experts_H, len(subjects)),
                "tokens": slots_SH.ravel(),
                "share": (slots_SH / tokens_S1).ravel(),
                "share_null": binom.pmf(experts_H, most, filled_S1).ravel(),
            }
        )

    tables = ((layer, table(sizes.arrays[layer]["slots_SH"])) for layer in source.layers)
    return stacked(tables, source, rule)
