"""G7 of a trace: to how many devices a token goes.

Shape suffixes: S groups (task, subject, area), N experts of a layer, L layers of one shape,
H devices of a token.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import pandas as pd

from moe_probe.analysis.accumulators.counts import Counts
from moe_probe.analysis.accumulators.fanout import DeviceFanout
from moe_probe.analysis.metrics.coactivation import groups_hit
from moe_probe.analysis.metrics.devices import group_limit
from moe_probe.analysis.reading.index import subject_names
from moe_probe.analysis.reading.rules import Rule
from moe_probe.analysis.scan import Progress
from moe_probe.analysis.statistics.random_sets import devices_hit, own_rate_devices_hit
from moe_probe.analysis.statistics.simulation import limited_sets
from moe_probe.analysis.statistics.undefined import positive
from moe_probe.analysis.studies.scanning import (
    AnyTrace,
    facts_of,
    fill,
    refuse_none,
    source_of,
    stacked,
    with_all,
)
from moe_probe.analysis.tables.devices import DEVICES
from moe_probe.trace import LayerSpec

_COLUMNS = (
    *("devices", "subject", "tokens", "devices_hit", "devices_hit_most"),
    *("devices_hit_null", "devices_hit_null_limited", "devices_hit_null_own"),
)
_SIMULATED = 1 << 14
"""Tokens of a null that has no closed form: enough for two decimals."""


def device_fanout(
    trace: AnyTrace,
    *,
    rule: Rule | str | None = None,
    devices: Sequence[int] = DEVICES,
    threads: int | None = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Tabulate on how many expert-parallel devices a token's experts lie (G7).

    A token is sent to each of them once, so this is the traffic between devices. Experts lie on
    devices in contiguous blocks of equal size, as engines place them before any rebalancing.

    Args:
        trace: The trace, or where it lies.
        rule: Which tokens count; the trace's default rule if None.
        devices: Numbers D of devices. A layer has no rows for those that do not divide its experts.
        threads: Threads of the scan; all processors if None.
        progress: Called with the number of layers done, and of all.

    Returns:
        One row per layer, number of devices and subject, and first of each number one over all.
        layer
        devices  D
        subject  "" for all
        tokens  T
        devices_hit  mean over tokens, in [1, min(D, k)] where no slot is empty; null without tokens
        devices_hit_most  of any token: the limit of node-limited routing, where there is one
        devices_hit_null  D (1 - C(N - N/D, k) / C(N, k)), tokens that choose k of N uniformly
        devices_hit_null_limited  tokens with random scores, where the layer's router takes groups
            of experts first and the trace knows how many; null for others
        devices_hit_null_own  tokens whose experts keep their frequencies and are otherwise drawn
            at random: above it experts of one device avoid each other, below it they come
            together. Null where tokens have different numbers of experts
        Source of the limit: DeepSeek-V3 (2412.19437), node-limited routing.

    Raises:
        TraceError: the trace has no per-token rows, or is damaged.
        ValueError: there is no such rule, or a number of devices below 1.
    """
    refuse_none("{} devices", *devices)
    source = source_of(trace)
    facts = facts_of(source, rule)
    counts, fanout = Counts(*facts), DeviceFanout(*facts, devices=tuple(devices))
    fill(source, [counts, fanout], threads, progress)
    subjects = ["", *subject_names(source.index.groups)]
    own = _own_rates(counts, fanout)

    def rows(layer: int, number: int) -> pd.DataFrame:
        spec, count = source.layers[layer], fanout.devices[number]
        fanout_SH, tokens_S = with_all(*_hits(fanout, layer, number))
        slots_SH, _ = with_all(fanout.arrays[layer]["slots_SH"], tokens_S[1:])
        hit_H = np.arange(spec.top_k + 1)
        most_S = np.where(fanout_SH > 0, hit_H, -1).max(axis=1)
        return pd.DataFrame(
            {
                "devices": count,
                "subject": subjects,
                "tokens": tokens_S,
                "devices_hit": fanout_SH @ hit_H / positive(tokens_S),
                "devices_hit_most": pd.array(np.where(tokens_S > 0, most_S, np.nan), "Int64"),
                "devices_hit_null": slots_SH @ _by_slots(spec, count) / positive(tokens_S),
                "devices_hit_null_limited": _limited(spec, count),
                "devices_hit_null_own": own[layer, number],
            }
        )

    tables = (
        (layer, rows(layer, number))
        for layer, spec in source.layers.items()
        for number, count in enumerate(fanout.devices)
        if spec.num_experts % count == 0
    )
    return stacked(tables, source, rule, columns=_COLUMNS)


def _hits(fanout: DeviceFanout, layer: int, number: int) -> tuple[np.ndarray, np.ndarray]:
    fanout_SH = fanout.arrays[layer]["fanout_SXH"][:, number]
    return fanout_SH, fanout_SH.sum(axis=1)


def _by_slots(spec: LayerSpec, devices: int) -> np.ndarray:
    """Devices hit under N0 by tokens of 0 to k experts: float64 [H]."""
    return np.array([devices_hit(spec.num_experts, h, devices) for h in range(spec.top_k + 1)])


def _limited(spec: LayerSpec, devices: int) -> float:
    groups, limit = group_limit(spec)
    if limit == groups:
        return math.nan
    size = spec.num_experts // groups
    best = 1 if spec.facts.get("selection") == "group_limited_greedy" else min(2, size)
    ids_TK = limited_sets(spec.num_experts, spec.top_k, groups, limit, best, _SIMULATED)
    return groups_hit(ids_TK, spec.num_experts, devices)


def _own_rates(counts: Counts, fanout: DeviceFanout) -> dict[tuple[int, int], np.ndarray | float]:
    """Devices hit under N1, by layer and place of the number of devices: float64 [S]."""
    alike: dict[tuple[int, int], list[int]] = defaultdict(list)
    found: dict[tuple[int, int], np.ndarray | float] = defaultdict(lambda: math.nan)
    for layer, spec in counts.layers.items():
        if fanout.arrays[layer]["slots_SH"][:, : spec.top_k].sum() == 0:
            alike[spec.num_experts, spec.top_k].append(layer)
    for (experts, top_k), layers in alike.items():
        both = [with_all(*counts.by_group(layer)) for layer in layers]
        frequency_LSN = np.stack([c_SN / positive(t_S)[:, None] for c_SN, t_S in both])
        fitting = [n for n, devices in enumerate(fanout.devices) if experts % devices == 0]
        counts_X = [fanout.devices[number] for number in fitting]
        hit_LSX = own_rate_devices_hit(frequency_LSN, top_k, counts_X)
        for place, layer in enumerate(layers):
            found |= {(layer, n): hit_LSX[place, :, x] for x, n in enumerate(fitting)}
    return found
