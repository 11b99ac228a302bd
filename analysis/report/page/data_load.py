"""What chance alone would give beside the figures of loads, idle windows and devices.

Shape suffixes: L layers, N experts of a layer, D devices, R simulated traces,
X different lengths, G numbers of devices, S subjects.
"""

from __future__ import annotations

import math
from dataclasses import asdict

import numpy as np
import pandas as pd

from moe_probe.analysis.metrics.devices import GroupLimit, device_null, group_limit
from moe_probe.analysis.metrics.frequency import selection_frequency
from moe_probe.analysis.metrics.idle import fair_rate
from moe_probe.analysis.metrics.tiers import BURSTY, RARE
from moe_probe.analysis.report.contents import Contents
from moe_probe.analysis.report.page.payload import Payload, round_float32
from moe_probe.analysis.statistics.idle_null import expected_longest_run
from moe_probe.analysis.statistics.nulls import expected_indices
from moe_probe.analysis.tables.layers import mean_k, of_fixed_k

_SETS = 2000
_OUTSIDE = 0.025
"""Part of a band's chance on either side of it."""


def load(contents: Contents, payload: Payload) -> None:
    """Nulls at the effective number of tokens, and the idle windows that occur."""
    payload.meta["quadrants"] = quadrants(contents.layers)
    layers = of_fixed_k(contents.layers, contents.analysis.sums)
    payload.table("layers_chance", layers_chance(layers))
    for number in sorted(set(layers["num_experts"].tolist())):
        payload.array(f"order.{number}", order_scores(number))
    windows = contents.analysis.idle_windows
    if len(windows):
        occurs = (windows["runs"] > 0) | (windows["runs_shuffled"] > 0)
        names = ["layer", "expert", "window", "runs", "share", "runs_shuffled"]
        windows = windows.loc[occurs, names]
    payload.table("idle_windows", windows)
    payload.table("idle_chance", chance_in_passes(contents))
    payload.array("stretches", stretches(contents))
    sizes = contents.analysis.table("devices")["devices"].tolist()
    transfer(contents, payload)
    limits = [group_limit(contents.analysis.sums.specs[layer]) for layer in layers["layer"]]
    payload.table("device_layers_chance", device_layers_chance(layers, sizes, limits))


def transfer(contents: Contents, payload: Payload) -> None:
    """Add the table `placement`, and of placements for one subject a matrix for every D.

    placement.pairs float32 [G, S, S]: devices as in the table `devices`, subjects that
    placements are made for, and subjects whose loads they balance.
    """
    table, subjects = contents.analysis.table("placement"), len(contents.analysis.sums.subjects)
    is_pair = table["fit"] == "subject"
    balance = table.loc[is_pair, "balancedness"].to_numpy(np.float64)
    columns = ["devices", "fit", "subject", "balancedness"]
    payload.table("placement", table.loc[~is_pair, columns])
    shape = (-1, subjects, subjects) if len(balance) else (0, subjects, subjects)
    payload.array("placement.pairs", round_float32(balance.reshape(shape), 4))


def stretches(contents: Contents) -> np.ndarray:
    """Return the lengths of the stretches that no idle run leaves, and how many of each: [2, X].

    Of one layer: rows have all layers, so that these have the same tokens. Without order, none.
    """
    states = contents.analysis.sums.layers.values()
    known = [state.idle.stretches_2X for state in states if state.idle is not None]
    return known[0] if known else np.zeros((2, 0), np.int64)


def chance_in_passes(contents: Contents) -> pd.DataFrame:
    """Return what chance gives in forward passes, at the windows of the settings that fit in.

    Returns:
        layer, window, window_tokens; empty where idle runs are counted in tokens
        own, fair  expected number of experts that idle for so long, at their own and the fair rate
        expected, expectedShare  runs of all experts, and mean share of the passes that lie in them
    """
    sums = contents.analysis.sums
    names = ["layer", "window", "window_tokens", "own", "fair", "expected", "expectedShare"]
    null, rows = sums.pass_null, []
    windows = () if null is None else sums.settings.windows
    for counts in sums.counts.by_layer():
        own_N = selection_frequency(counts.counts_N, counts.tokens)
        fair_1 = np.array([fair_rate(counts.counts_N, counts.tokens)])
        for window in windows:
            if null is not None and window <= null.longest_stream:
                rows.append(
                    (
                        *(counts.spec.layer, window, null.window_tokens(window)),
                        null.p_longest_at_least(own_N, window).sum(),
                        null.p_longest_at_least(fair_1, window)[0] * len(own_N),
                        null.expected_runs(own_N, window).sum(),
                        null.expected_idle_share(own_N, window).mean(),
                    )
                )
    return pd.DataFrame(rows, columns=names)


def layers_chance(layers: pd.DataFrame) -> pd.DataFrame:
    """Return what N0 gives if only T_eff tokens were counted, T where T_eff is not known.

    Args:
        layers: From `of_fixed_k`, here and below.

    Returns:
        layer; one column for each imbalance index; tokens, the number that was used.
    """
    nulls = [expected_indices(n, k, effective) for n, k, _, effective in _facts(layers)]
    table = pd.DataFrame([asdict(null) for null in nulls])
    table.insert(0, "layer", layers["layer"].to_numpy())
    return table.assign(tokens=[effective for *_, effective in _facts(layers)])


def quadrants(layers: pd.DataFrame) -> dict[str, float | None]:
    """Return where an expert is called rare and where bursty, in nats.

    Returns:
        rate_deficit  of a relative load of 0.1, median over layers; None without tokens
        burstiness  of a run 5 times as long as expected
    """
    tokens_L = layers["tokens"].to_numpy()
    fair_L = mean_k(layers) / layers["num_experts"].to_numpy()
    rare_L, even_L = (expected_longest_run(load * fair_L, tokens_L) for load in (RARE, 1.0))
    is_defined_L = (rare_L > 0) & (even_L > 0)
    deficit_L = np.log(rare_L[is_defined_L] / even_L[is_defined_L])
    deficit = float(np.median(deficit_L)) if len(deficit_L) else None
    return {"rate_deficit": deficit, "burstiness": math.log(BURSTY)}


def order_scores(num_experts: int) -> np.ndarray:
    """Return where the sorted ones of N normals lie about their own mean: float64 [3, N].

    From the least: the 2.5 % point, the median and the 97.5 % point of each, of 2,000 simulated
    sets and as many mirrored ones. The seed is fixed.
    """
    normal_RN = np.random.default_rng(0).standard_normal((_SETS, num_experts))
    normal_RN = np.sort(normal_RN - normal_RN.mean(axis=1, keepdims=True), axis=1)
    both_RN = np.concatenate([normal_RN, -normal_RN[:, ::-1]])
    return np.asarray(np.quantile(both_RN, [_OUTSIDE, 0.5, 1 - _OUTSIDE], axis=0))


def device_layers_chance(
    layers: pd.DataFrame, sizes: list[int], limits: list[GroupLimit]
) -> pd.DataFrame:
    """Return how uneven chance alone makes the devices of every layer.

    Args:
        layers: From `of_fixed_k`.
        sizes: Numbers of devices.
        limits: Of every layer's router.

    Returns:
        devices, layer
        max_vio  expected (max - mean) / mean of the devices' loads under N0, and
            under N0g where the router takes groups of experts first
        max_vio_effective  the same for T_eff tokens
    """
    rows = [
        (
            size,
            layer,
            *(device_null(n, k, size, t, limited).max_vio for t in (tokens, effective)),
        )
        for size in sizes
        for layer, (n, k, tokens, effective), limited in zip(
            layers["layer"], _facts(layers), limits, strict=True
        )
    ]
    return pd.DataFrame(rows, columns=["devices", "layer", "max_vio", "max_vio_effective"])


def _facts(layers: pd.DataFrame) -> list[tuple[int, float, int, int]]:
    """Return N, k, T and T_eff of every layer: T where no design effect is known, 1 at least."""
    columns = (layers[name].tolist() for name in ("num_experts", "top_k", "tokens"))
    return [
        (n, k, tokens, max(round(effective), 1) if effective > 0 else tokens)
        for n, k, tokens, effective in zip(*columns, layers["tokens_effective"], strict=True)
    ]
