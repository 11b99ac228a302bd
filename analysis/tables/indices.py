"""The table `indices`: every index of group D, of choices, first choices, gate mass and devices.

`layers` has the most used of them in columns; this is the cross-walk, one row for each.

Shape suffixes: N experts of a layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from functools import lru_cache, partial

import numpy as np
import pandas as pd

from moe_probe.analysis.metrics import imbalance
from moe_probe.analysis.metrics.concentration import (
    bottom_share,
    expected_loads,
    tail_ratio,
    top_share,
)
from moe_probe.analysis.metrics.devices import (
    GroupLimit,
    device_loads,
    device_null,
    group_limit,
)
from moe_probe.analysis.metrics.frequency import relative_load
from moe_probe.analysis.metrics.noise import index_noise
from moe_probe.analysis.metrics.weights import gate_cv_null
from moe_probe.analysis.statistics.nulls import expected_indices
from moe_probe.analysis.statistics.undefined import positive
from moe_probe.analysis.sums import Sums
from moe_probe.analysis.tables.design_effects import mean_deff, num_documents
from moe_probe.analysis.tables.devices import fitting_devices

# A null below is none to compare with.
_NOTHING = 1e-12
Index = Callable[[np.ndarray], np.ndarray]


def _max_load(counts_N: np.ndarray) -> np.ndarray:
    return np.asarray(relative_load(counts_N).max(axis=-1))


def _normalised_entropy(counts_N: np.ndarray) -> np.ndarray:
    return np.asarray(imbalance.entropy(counts_N) / math.log(max(counts_N.shape[-1], 2)))


INDICES: dict[str, Index] = {
    "max_load": _max_load,
    "max_vio": imbalance.max_vio,
    "min_vio": imbalance.min_vio,
    "cv": imbalance.cv,
    "gini": imbalance.gini,
    "entropy": imbalance.entropy,
    "entropy_normalised": _normalised_entropy,
    "effective_experts": imbalance.effective_experts,
    "inverse_simpson": imbalance.inverse_simpson,
    "jain": imbalance.jain,
    "kl_uniform": imbalance.kl_uniform,
    "total_variation": imbalance.total_variation,
    "top_share_1": partial(top_share, fraction=0.01),
    "top_share_10": partial(top_share, fraction=0.1),
    "bottom_share_1": partial(bottom_share, fraction=0.01),
    "bottom_share_10": partial(bottom_share, fraction=0.1),
    "tail_ratio": tail_ratio,
    "unseen": imbalance.unseen,
}
"""Every index of one layer's loads by its name, D1 to D13: counts [..., N] to [...]."""


def indices(sums: Sums) -> pd.DataFrame:
    """Tabulate every index of every layer.

    Returns:
        layer
        of  `choices`, all selections (D1 to D13); `first choices`, those of the first slot alone,
            one of N experts a token (D16), where slots are in a known order; `gate mass`, sums of
            gate weights (D15), where they were captured; `8 devices` and so on, those of devices
            that hold as many consecutive experts each (D14), for the numbers of the table `devices`
        index  a name of `INDICES`; `entropy_normalised` is H / ln N, `top_share_10` the share of
            selections that the busiest tenth of the experts takes, `tail_ratio` the 95th over the
            5th percentile of the load, the others as in `layers`
        value  entropies in nats
        perfect  its value where all loads are equal
        worst  its value where the k experts that a token has at least take all; one where slots
            may stay empty, and of gate mass; null for `tail_ratio`, which has no bound
        null  its expectation if T tokens chose their experts uniformly at random; of gate mass
            `cv` alone has one, each token's weights put on random experts; of devices all but
            `unseen` have one, under N0g where the router takes groups of experts first
        null_effective  the same with T_eff tokens, `tokens_effective` of `layers`: above it loads
            differ by more than these documents explain
        noise  its standard deviation over resampled documents; of all choices only
        excess  value minus null_effective
        signal_ratio  value over null_effective; null where that is next to nothing
    """
    tables = []
    for layer in sums.specs:
        # Documents that do not differ tell no T_eff.
        deff = float(positive(mean_deff(sums.layers.get(layer))))
        for of, table in _tables(sums, layer, deff).items():
            tables.append(table.assign(layer=layer, of=of))
    if not tables:
        return pd.DataFrame(columns=["layer"])
    found = pd.concat(tables, ignore_index=True)
    null = found["null_effective"]
    found["excess"] = found["value"] - null
    found["signal_ratio"] = found["value"] / null.where(null > _NOTHING)
    leading = ["layer", "of", "index", "value", "perfect", "worst"]
    return found[[*leading, "null", "null_effective", "noise", "excess", "signal_ratio"]]


def _tables(sums: Sums, layer: int, deff: float) -> dict[str, pd.DataFrame]:
    """The indices of one layer's choices, first choices and gate mass, as far as there are any."""
    spec, counts, state = sums.specs[layer], sums.counts.layer(layer), sums.layers.get(layer)
    num_experts, sizes = spec.num_experts, sums.set_sizes(layer)
    # Where tokens leave slots empty, one expert may have all.
    fewest = spec.top_k if sizes.mean_k == spec.top_k else 1
    tokens = counts.tokens
    nulls = [
        _nulls(num_experts, sizes.null_k, sizes.null_tokens(n)) for n in (tokens, tokens / deff)
    ]
    tables = {"choices": _table(counts.counts_N, fewest, *nulls)}
    if state is not None and num_documents(state) > 1:
        noise = [float(index_noise(state.replicates_BN, index)) for index in INDICES.values()]
        tables["choices"]["noise"] = noise
    if sums.slots is not None and sums.has_ranks:
        first_N = sums.slots.arrays[layer]["slot_counts_KN"][0]
        nulls = [_nulls(num_experts, 1, n) for n in (first_N.sum(), first_N.sum() / deff)]
        tables["first choices"] = _table(first_N, 1, *nulls)
    if sums.weights is not None:
        arrays = sums.weights.arrays[layer]
        mass_N, square_N = (
            arrays[n].sum(axis=0) for n in ("weight_sum_SN", "weight_square_sum_SN")
        )
        null = gate_cv_null(square_N, float(mass_N.sum()), tokens)
        nulls = [{"cv": null}, {"cv": null * math.sqrt(deff)}]
        tables["gate mass"] = _table(mass_N, 1, *nulls)
    for devices in fitting_devices(sums):
        facts = num_experts, sizes.null_k, devices
        nulls = [
            _device_nulls(*facts, sizes.null_tokens(n), group_limit(spec))
            for n in (tokens, tokens / deff)
        ]
        load_D = device_loads(counts.counts_N, devices)
        tables[f"{devices} devices"] = _table(load_D, fewest, *nulls, each=num_experts // devices)
    return tables


def _device_nulls(
    num_experts: int, top_k: float, devices: int, tokens: float, limited: GroupLimit
) -> dict[str, float]:
    """Return those of as many tokens of one device each as vary as much."""
    if not tokens > 0:
        return {}
    square = device_null(num_experts, top_k, devices, tokens, limited).cv ** 2
    if square == 0:
        return {}
    known = _nulls(devices, 1, (devices - 1) / square)
    return {name: value for name, value in known.items() if name != "unseen"}


def _table(
    load_N: np.ndarray, fewest: int, *nulls: dict[str, float], each: int = 1
) -> pd.DataFrame:
    """Tabulate the indices of one layer's loads, of which `fewest` experts have all at worst.

    Loads are of experts, or of devices with so many experts `each`.
    """
    ends, rows = _ends(len(load_N), fewest, each), []
    for name, index in INDICES.items():
        values = float(index(load_N)), *ends[name]
        rows.append([name, *values, *(null.get(name, np.nan) for null in nulls), np.nan])
    columns = ["index", "value", "perfect", "worst", "null", "null_effective", "noise"]
    return pd.DataFrame(rows, columns=columns)


@lru_cache
def _ends(number: int, fewest: int, each: int) -> dict[str, tuple[float, float]]:
    """Every index of equal loads, and of loads that `fewest` experts have alone."""
    is_crowded_N = np.arange(number * each) < fewest
    even_N, crowded_N = np.ones(number), device_loads(is_crowded_N.astype(np.float64), number)
    ends = {name: (float(at(even_N)), float(at(crowded_N))) for name, at in INDICES.items()}
    return ends | {"tail_ratio": (ends["tail_ratio"][0], np.nan)}


@lru_cache(maxsize=1024)
def _nulls(num_experts: int, top_k: float, tokens: float) -> dict[str, float]:
    """Return every index under N0: closed forms, or the index of the loads that N0 expects."""
    if not tokens > 0:
        return {}
    known = asdict(expected_indices(num_experts, top_k, tokens))
    even = 1 + known["cv"] ** 2
    known |= {
        "max_load": 1 + known["max_vio"],
        "entropy_normalised": known["entropy"] / math.log(max(num_experts, 2)),
        "inverse_simpson": num_experts / even,
        "jain": 1 / even,
    }
    load_N = expected_loads(num_experts, top_k, tokens)
    others = {name: float(INDICES[name](load_N)) for name in INDICES if name not in known}
    return known | others
