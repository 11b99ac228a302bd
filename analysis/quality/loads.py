"""Checks of the counts: Q5, bounds and sums, and Q15, the load of expert 0.

Shape suffixes: N experts of a layer, F frequencies, R sums of ranks.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow.compute as pc
from scipy.special import betaln, chdtrc

from moe_probe.analysis.accumulators.counts import Counts, LayerCounts
from moe_probe.analysis.accumulators.tables import table_totals
from moe_probe.analysis.metrics.frequency import relative_load
from moe_probe.analysis.metrics.ranking import rank_from_least
from moe_probe.analysis.quality.outcome import Check, Status, groups_of, pass_if, some
from moe_probe.analysis.statistics.successes import successes
from moe_probe.trace import Trace

# One trace in 700, and one in 3 million.
_NOTE, _FAIL = 1 / 700, 1 / 3_000_000
_ALONE = 3.0
"""Load of an expert over that of any other of its layer, from which it stands alone."""
_ALONE_CHANCE = 0.05
"""Of expert 0 to stand alone in so many layers, below which it is noted: few experts often do."""
_TOKENS = 100
"""Of fewer it is often one expert that most of them select."""


def count_bounds(trace: Trace, counts: Counts, *, scanned: bool) -> Check:
    name = "counts add up"
    expected = "k per token, one per expert"
    faults = []
    totals, is_whole = None, True
    # While a recording goes on, its tables lag behind its rows.
    if scanned and not trace.is_recording:
        totals = table_totals(trace)
        is_whole = pc.all(trace.sequences["rows_kept"]).as_py() is not False
        expected += "; tables = rows" if is_whole else "; tables >= rows, some left out"
    for layer in counts.by_layer():
        full = layer.tokens * layer.spec.top_k
        if layer.assignments > full or (layer.assignments < full and not layer.spec.empty_slots):
            faults.append(f"layer {layer.spec.layer}: {layer.assignments:,} of {full:,} selections")
        elif layer.counts_N.max() > layer.tokens:
            faults.append(f"layer {layer.spec.layer}: an expert beyond {layer.tokens:,} tokens")
        elif totals and _differ(totals[layer.spec.layer], layer.counts_N, is_whole):
            faults.append(f"layer {layer.spec.layer}: the counts tables differ from the rows")
    value = some(faults) if faults else f"{len(counts.layers)} layers exact"
    return Check("Q5", name, pass_if(not faults), value, expected)


def _differ(tables_N: np.ndarray, rows_N: np.ndarray, is_whole: bool) -> bool:
    # The tables also have the rows that a size limit left out.
    return bool((tables_N != rows_N).any() if is_whole else (tables_N < rows_N).any())


def expert_zero(layers: Iterable[LayerCounts]) -> Check:
    """Compare expert 0 with the others: an expert's index means nothing to a trained router.

    Rows of zeros raise the load of expert 0 in every layer, so that the sum of its ranks over the
    layers goes up before it stands out in any of them. Under exchangeable experts each rank is
    that of a random expert, and the chance of so large a sum exact; of N^-L where it is the
    busiest in all L layers, so that in two or three layers nothing is certain enough to fail.
    Whatever its rank elsewhere, a layer where it has several times the load of any other is noted,
    unless one expert or another has in so many layers that chance explains it.
    """
    name = "expert 0 loaded like the others"
    doubled: list[np.ndarray] = []
    loads, alone, sizes = [], [], []
    for layer in layers:
        if layer.assignments and layer.spec.num_experts > 1:
            load_N = relative_load(layer.counts_N)
            # Twice the rank, for equal loads the mean of theirs: whole numbers.
            from_busiest_N = rank_from_least(-load_N)
            doubled.append(rank_from_least(load_N) + len(load_N) + 1 - from_busiest_N)
            loads.append(load_N[0])
            expert = _standing_alone(load_N) if layer.tokens >= _TOKENS else None
            if expert is not None:
                sizes.append(len(load_N))
            if expert == 0:
                alone.append(f"{load_N[0]:.1f} in layer {layer.spec.layer}")
    if not doubled:
        return Check("Q15", name, Status.SKIP, reason="no selections among several experts")
    least = float(np.prod([1 / len(rank_N) for rank_N in doubled]))
    if least >= _NOTE and max(map(len, doubled)) * _ALONE_CHANCE <= 1:
        reason = "few layers and experts: expert 0 is often the busiest by chance"
        return Check("Q15", name, Status.SKIP, reason=reason)
    chance = _chance(doubled)
    alone = alone if _chance_alone(sizes, len(alone)) < _ALONE_CHANCE else []
    is_odd = bool(chance < _NOTE or alone)
    status = Status.FAIL if chance < _FAIL else Status.NOTE if is_odd else Status.PASS
    mean = np.mean([(rank_N[0] - 1) / (2 * len(rank_N)) for rank_N in doubled])
    value = f"mean rank {mean:.2f}, median load {np.median(loads):.2f}"
    value += f"; load {some(alone)}, {_ALONE:.0f} times any other" if alone else ""
    return Check("Q15", name, status, value, f"0.50; chance >= 1 in {1 / _FAIL:,.0f}")


def _standing_alone(load_N: np.ndarray) -> int | None:
    """Return the expert that has several times the load of any other, if one has."""
    second, first = np.partition(load_N, -2)[-2:]
    return int(load_N.argmax()) if first > _ALONE * second else None


def _chance_alone(sizes: Iterable[int], layers: int) -> float:
    """Chance that in so many layers, of those where an expert stands alone, it is expert 0.

    Args:
        sizes: Experts of each of those layers.
        layers: Their least number.
    """
    return float(successes(1 / experts for experts in sizes)[layers:].sum())


def experts_in_use(layers: Iterable[LayerCounts]) -> Check:
    """Look for layers that use none but the first of their experts, as ids within a device do.

    If an expert's index means nothing, all u that are used are among the first m of N with chance
    C(m, u) / C(N, u). Of a router that chooses groups first, groups are looked at instead. Chances
    of layers are joined by Fisher's method, which errs on the safe side for whole numbers. Where
    none of the second half is used, and that may be chance, nothing can be told.
    """
    name = "experts in use not only the first"
    logs, tops, is_half = [], [], True
    for layer in layers:
        experts, groups = layer.spec.num_experts, groups_of(layer.spec)
        units = groups if groups > 1 else experts
        used = np.unique(np.flatnonzero(layer.counts_N) // (experts // units))
        if len(used):
            top, number = int(used[-1]) + 1, len(used)
            logs.append(_log_choose(top, number) - _log_choose(units, number))
            last = top * experts // units - 1
            tops.append(f"ids 0 to {last} of 0 to {experts - 1} in layer {layer.spec.layer}")
            is_half &= 2 * top <= units
    if not logs:
        return Check("Q21", name, Status.SKIP, reason="no selections")
    chance = float(chdtrc(2 * len(logs), max(-2 * sum(logs), 0)))
    if is_half and chance >= _FAIL:
        reason = "few layers, or experts in use: that none has a high id may be chance"
        return Check("Q21", name, Status.SKIP, reason=reason)
    value = f"{tops[int(np.argmin(logs))]}, the least likely of {len(logs)}"
    return Check("Q21", name, pass_if(chance >= _FAIL), value, f"chance >= 1 in {1 / _FAIL:,.0f}")


def _log_choose(total: int, chosen: int) -> float:
    return float(-betaln(chosen + 1, total - chosen + 1) - np.log(total + 1))


def _chance(doubled: list[np.ndarray]) -> float:
    """Return the chance that random experts, one of each layer, have as large a sum of ranks.

    Args:
        doubled: Twice the ranks of the experts of each layer, int64 [N].
    """
    length = sum(int(rank_N.max()) for rank_N in doubled) + 1
    spectrum_F = np.ones(length // 2 + 1, np.complex128)
    for rank_N in doubled:
        spectrum_F *= np.fft.rfft(np.bincount(rank_N) / len(rank_N), length)
    chance_R = np.fft.irfft(spectrum_F, length)
    return float(chance_R[sum(int(rank_N[0]) for rank_N in doubled) :].sum())
