"""D3 and S13 of a trace: how even the load of single forward passes is.

Shape suffixes: N experts of a layer, D numbers of devices, B octaves of tokens, H bins, R simulated
passes, X the same dealt anew, G groups of experts, E experts of a group.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import pandas as pd

from moe_probe.analysis.accumulators.pass_loads import BINS, OCTAVES, PassLoads
from moe_probe.analysis.metrics.devices import GroupLimit, device_loads, group_limit
from moe_probe.analysis.reading.passes import PassTable
from moe_probe.analysis.reading.rules import Rule
from moe_probe.analysis.scan import Progress
from moe_probe.analysis.statistics.simulation import simulate_counts
from moe_probe.analysis.statistics.undefined import positive
from moe_probe.analysis.studies.scanning import (
    AnyTrace,
    facts_of,
    fill,
    refuse_none,
    source_of,
    stacked,
)
from moe_probe.analysis.tables.devices import DEVICES
from moe_probe.trace import LayerSpec

_SIMULATED = 1 << 16
"""Tokens simulated per octave, in 20 to 2,000 passes."""
_PASSES = 2_000


def pass_balance(
    trace: AnyTrace,
    *,
    rule: Rule | str | None = None,
    devices: Sequence[int] = DEVICES,
    threads: int | None = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Tabulate how even the loads of experts and devices are in single forward passes (D3).

    What expert-parallel devices wait for is the busiest of them in every pass, not in the sum over
    a run, which is far more even.

    Args:
        trace: The trace, or where it lies.
        rule: Which tokens count; the trace's default rule if None.
        devices: Numbers of devices with equally many consecutive experts each. One that does not
            divide a layer's experts has no rows there.
        threads: Threads of the scan; all processors if None.
        progress: Called with the number of layers done, and of all.

    Returns:
        One row per layer, number of devices, and size of passes that occurs: 1, 2-3, 4-7, ...
        layer
        devices  first N, every expert alone
        tokens_from  the smallest number of counted tokens of such passes; the largest is below
            twice as many
        passes  their number, of all ranks; those that select nothing are left out
        tokens_mean  their mean number of counted tokens
        max_vio  mean over passes of max / mean - 1, in [0, min(D, N/k) - 1]
        max_vio_sd  its sd over passes (ddof 1); null of one pass
        max_vio_null  mean of simulated passes with as many tokens, each of k experts drawn
            uniformly, from groups drawn first where the router takes such (N0g); null where tokens
            differ in k. Good to 5 %, and to 10 % in passes of thousands of tokens
        balancedness  mean over passes of mean / max, in (0, 1]; 1 is even
        balancedness_p10, balancedness_p50  its quantiles over passes, good to 0.01
        balancedness_null  like `max_vio_null`

    Raises:
        TraceError: the trace has no per-token rows, or is damaged.
        UsageError: counted tokens do not say which pass ran them, or several passes did.
        ValueError: there is no such rule, or a number of devices below 1.

    Sources: MaxVio_batch of Loss-Free Balancing (2408.15664); balancedness per step of vLLM and
    SGLang.
    """
    refuse_none("{} devices", *devices)
    source = source_of(trace)
    _, chosen, _ = facts = facts_of(source, rule)
    table = PassTable.of(source, chosen)
    loads = PassLoads(*facts, table=table, devices=tuple(devices))
    fill(source, [loads], threads, progress)

    @lru_cache
    def null(num_experts: int, top_k: int, limited: GroupLimit) -> np.ndarray:
        return _simulated(loads, table.tokens_P, num_experts, top_k, limited)

    def rows(layer: int) -> pd.DataFrame:
        spec = loads.layers[layer]
        shape = spec.num_experts, spec.top_k, group_limit(spec)
        null_DB2 = None if spec.empty_slots else null(*shape)
        return _table(loads, spec, null_DB2)

    return stacked(((layer, rows(layer)) for layer in loads.layers), source, rule)


def _table(loads: PassLoads, spec: LayerSpec, null_DB2: np.ndarray | None) -> pd.DataFrame:
    arrays = loads.arrays[spec.layer]
    number_B, tokens_B = arrays["passes_B2"].T
    some_B = np.flatnonzero(number_B)
    number, frames = number_B[some_B], []
    for place, devices in loads.units(spec.num_experts):
        ratio, square, even = (arrays["ratio_DB3"][place, some_B] / number[:, None]).T
        spread = np.maximum(square - ratio**2, 0) * number / positive(number - 1)
        low, middle = _quantiles(arrays["even_DBH"][place, some_B], (0.1, 0.5))
        blank = np.full((len(some_B), 2), np.nan)
        null = blank if null_DB2 is None else null_DB2[place, some_B]
        frames.append(
            pd.DataFrame(
                {
                    "devices": devices,
                    "tokens_from": np.int64(1) << some_B,
                    "passes": number,
                    "tokens_mean": tokens_B[some_B] / number,
                    "max_vio": ratio - 1,
                    "max_vio_sd": np.sqrt(spread),
                    "max_vio_null": null[:, 0] - 1,
                    "balancedness": even,
                    "balancedness_p10": low,
                    "balancedness_p50": middle,
                    "balancedness_null": null[:, 1],
                }
            )
        )
    return pd.concat(frames, ignore_index=True)


def _quantiles(bins_BH: np.ndarray, shares: tuple[float, ...]) -> list[np.ndarray]:
    """Return the middles of the bins that hold quantiles of each row: float64 [B] each."""
    below_BH = bins_BH.cumsum(axis=1) / positive(bins_BH.sum(axis=1))[:, None]
    return [((below_BH < share).sum(axis=1) + 0.5) / BINS for share in shares]


def _simulated(
    loads: PassLoads, tokens_P: np.ndarray, num_experts: int, top_k: int, limited: GroupLimit
) -> np.ndarray:
    """Return the means of max / mean and of mean / max of fair passes: float64 [D, B, 2].

    Sizes are drawn from those of the trace's passes. Always the same for the same arguments.
    """
    null_DB2 = np.full((1 + len(loads.devices), OCTAVES, 2), np.nan)
    octave_P = np.frexp(tokens_P.astype(np.float64))[1] - 1
    for octave in np.unique(octave_P).tolist():
        rng = np.random.default_rng([octave, num_experts, top_k])
        repeats = min(max(_SIMULATED >> octave, 20), _PASSES)
        size_R = rng.choice(tokens_P[octave_P == octave], repeats)
        counts_RN = np.stack(
            [
                simulate_counts(num_experts, top_k, tokens, rng, *limited)
                for tokens in size_R.tolist()
            ]
        )
        dealt_XN = _dealt(counts_RN, limited.groups, _PASSES // repeats, rng)
        for place, number in loads.units(num_experts):
            load_XD = device_loads(dealt_XN, number)
            ratio_X = load_XD.max(axis=1) / load_XD.mean(axis=1)
            null_DB2[place, octave] = ratio_X.mean(), (1 / ratio_X).mean()
    return null_DB2


def _dealt(counts_RN: np.ndarray, groups: int, times: int, rng: np.random.Generator) -> np.ndarray:
    """Repeat fair passes with groups, and experts within groups, in another order: [X, N].

    All orders are as likely, and devices get other loads in each: that of a few devices is known
    well from few passes.
    """
    repeated_XN = np.tile(counts_RN, (times, 1))
    counts_XGE = rng.permuted(repeated_XN.reshape(len(repeated_XN), groups, -1), axis=2)
    order_XG = rng.permuted(np.tile(np.arange(groups), (len(repeated_XN), 1)), axis=1)
    dealt_XGE = np.take_along_axis(counts_XGE, order_XG[:, :, None], axis=1)
    return dealt_XGE.reshape(repeated_XN.shape)
