"""What the table `layers` has of even routing: tests, tails and idle runs by chance."""

from __future__ import annotations

import math

import numpy as np

from moe_probe.analysis.layer_state import LayerState
from moe_probe.analysis.metrics.coverage import experts_below, experts_below_null
from moe_probe.analysis.metrics.idle import fair_rate
from moe_probe.analysis.metrics.noise import between_expert_variance
from moe_probe.analysis.statistics.clusters import cluster_variance
from moe_probe.analysis.statistics.idle_null import (
    expected_longest_run,
    longest_run_quantile,
    sd_longest_run,
)
from moe_probe.analysis.statistics.nulls import uniform_chi_square
from moe_probe.analysis.sums import Sums

_BELOW = {"below_1": 0.01, "below_10": 0.1, "below_50": 0.5}
_ALMOST_ALL = 0.95


def chance_of_layer(sums: Sums, layer: int) -> dict[str, float]:
    """Return these columns of `layers`.

    Returns:
        below_1, below_10, below_50  experts with r below 0.01, 0.1 and 0.5, each with
            `<name>_null`, that of T independent tokens at the fair rate
        chi_square, chi_square_null, chi_square_p  `uniform_chi_square`, its N - 1 degrees of
            freedom, and its p-value if tokens were independent
        load_variance, load_variance_null_sd  `between_expert_variance`, 0 by chance, and its sd
            under even loads
        longest_idle_fair, longest_idle_fair_sd  mean and sd of an expert's longest idle run at the
            fair rate, in one stream of T tokens
        longest_idle_fair_95  what the longest of all experts of all layers stays below with 95 %
    """
    counts, state, sizes = sums.counts.layer(layer), sums.layers.get(layer), sums.set_sizes(layer)
    counts_N, tokens, slots = counts.counts_N, counts.tokens, counts.assignments
    fair = fair_rate(counts_N, tokens)
    columns: dict[str, float] = {}
    for name, limit in _BELOW.items():
        columns[name] = float(experts_below(counts_N, limit))
        columns[f"{name}_null"] = float(experts_below_null(len(counts_N), tokens, fair, limit))
    statistic, p_value = uniform_chi_square(counts_N, slots, slots * sizes.null_k)
    experts = sum(spec.num_experts for spec in sums.specs.values())
    return {
        **columns,
        "chi_square": float(statistic),
        "chi_square_null": float(len(counts_N) - 1),
        "chi_square_p": float(p_value),
        **_variance(state, counts_N, tokens),
        "longest_idle_fair": float(expected_longest_run(fair, tokens)) if slots else math.nan,
        "longest_idle_fair_sd": float(sd_longest_run(fair, tokens)),
        "longest_idle_fair_95": float(longest_run_quantile(fair, tokens, experts, _ALMOST_ALL))
        if slots
        else math.nan,
    }


def _variance(state: LayerState | None, counts_N: np.ndarray, tokens: int) -> dict[str, float]:
    names = ("load_variance", "load_variance_null_sd")
    if state is None or len(counts_N) < 2:
        return dict.fromkeys(names, math.nan)
    variance_N = cluster_variance(state.moments.pooled())[0]
    found, noise = between_expert_variance(counts_N, variance_N, tokens)
    return dict(zip(names, (found, noise * math.sqrt(2 / (len(counts_N) - 1))), strict=True))
