"""Checks of single rows: Q1 to Q4, and Q6, rows per sequence.

Shape suffixes: S sequences, L layers but for one.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy.special import bdtrik

from moe_probe.analysis.accumulators.row_sample import RowSample
from moe_probe.analysis.accumulators.rows import Anomalies, RowFaults
from moe_probe.analysis.quality.outcome import NO_ROWS, Check, Status, groups_of, pass_if, some
from moe_probe.analysis.reading.index import column
from moe_probe.analysis.reading.source import Source
from moe_probe.trace import LayerSpec, Trace

_ORDERED_ROWS = 0.001
_CHANCE = 1e-5
"""Of a layer to fail by the rows that chance gives, so that one trace in 1,000 does at most."""
_NUMBERING = 0.01
_ALL_ROWS = 0.95
"""So many rows with the same experts are a fault, unless they are alike in other layers, too."""
_HALF = 0.5


def row_check(
    check: str,
    name: str,
    faults: RowFaults | None,
    field: str,
    allowed: Callable[[LayerSpec, int, int], float],
) -> Check:
    """Compare one kind of anomaly with the share of so many rows that may show it in each layer."""
    if faults is None:
        return Check(check, name, Status.SKIP, reason=NO_ROWS)
    total = faults.num_rows
    number = len(faults.layers)
    share_of = {layer: allowed(spec, total, number) for layer, spec in faults.layers.items()}
    layers = [layer for layer, share in share_of.items() if share < 1]
    if not layers:
        reason = "such rows are normal with one slot, few experts, or few or equal rows"
        return Check(check, name, Status.SKIP, reason=reason)
    by_layer: dict[int, Anomalies] = faults.by_layer()
    rows = {layer: getattr(by_layer[layer], field) for layer in layers}
    is_good = all(number <= share_of[layer] * total for layer, number in rows.items())
    worst = max(rows, key=lambda layer: rows[layer])
    value = f"{rows[worst]:,} of {total:,} rows"
    if rows[worst]:
        value += f" in layer {worst}, {sum(rows.values()):,} over all layers"
    most = max(share_of[layer] for layer in layers)
    return Check(check, name, pass_if(is_good), value, f"<= {most:.2%} of rows" if most else "0")


def none_allowed(_: LayerSpec, __: int, ___: int) -> float:
    return 0.0


def none_above_one_slot(spec: LayerSpec, _: int, __: int) -> float:
    return 0.0 if spec.top_k > 1 else 1.0


def ordered_allowed(spec: LayerSpec, rows: int, layers: int, *, are_alike: bool = False) -> float:
    """Return the share of rows that may read 0, 1, 2, ... in one of several layers.

    Of independent rows ten times their chance, since real routers have favourite sets. Of rows that
    depend on one another, such as those of one topic or of one token, a share s or more reads so by
    the numbering of the experts alone with chance 1 / (s C(N, k)): in one trace of 100 at most.

    Args:
        spec: The layer.
        rows: Of the trace.
        layers: Their number.
        are_alike: Whether rows are alike in all layers, so that in this one they may be, too.
    """
    chance = _chance_of_order(spec)
    by_chance = min(10 * chance, 1.0)
    if spec.top_k == 1 or by_chance == 1:
        return 1.0
    most = float(bdtrik(1 - _CHANCE, max(rows, 1), by_chance))
    alike = min(layers * chance / _NUMBERING, 1 if are_alike else _ALL_ROWS)
    return max(_ORDERED_ROWS + by_chance, math.ceil(most) / max(rows, 1), alike)


def _chance_of_order(spec: LayerSpec) -> float:
    """Chance of the experts 0 to k-1 by even routing, of groups drawn first where there are any."""
    groups = groups_of(spec)
    size = spec.num_experts // groups
    needed, per_token = -(-spec.top_k // size), spec.facts.get("groups_per_token")
    if not isinstance(per_token, int) or not needed <= per_token <= groups:
        per_token = groups
    drawn = math.comb(groups - needed, per_token - needed) / math.comb(groups, per_token)
    return drawn / math.comb(per_token * size, spec.top_k)


def rows_alike(sample: RowSample | None) -> bool:
    """Whether half of all rows have the same experts in most layers, as of one token repeated.

    The layer where most rows are alike is left out: it may be the one that was not written.
    """
    if sample is None or len(sample.layers) < 2 or not len(sample.row_E):
        return False
    most = [np.unique(print_E, return_counts=True)[1].max() for print_E in sample.prints_LE]
    share_L = np.sort(most)[:-1] / len(sample.row_E)
    return bool(np.quantile(share_L, 0.25) >= _HALF)


def rows_per_sequence(trace: Trace, source: Source | None) -> Check:
    name = "rows per sequence"
    if source is None:
        return Check("Q6", name, Status.SKIP, reason=NO_ROWS)
    table = trace.sequences.sort_by("sequence_id")
    start_S, stop_S, multiplicity_S = (
        column(table, name) for name in ("prefix_tokens", "num_tokens", "multiplicity")
    )
    sampled_S, kept_S = (table[name].to_numpy() for name in ("sampled", "rows_kept"))
    # Duplicates, and sequences outside the sample or the size limit, need not store anything.
    may_be_absent_S = ~sampled_S.astype(bool) | (multiplicity_S == 0) | ~kept_S.astype(bool)
    rows_S = source.rows_S
    is_whole_S = rows_S == stop_S - start_S
    is_whole_S &= 2 * source.position_sum_S == (start_S + stop_S - 1) * (stop_S - start_S)
    wrong_S = np.flatnonzero(~is_whole_S & ((rows_S > 0) | ~may_be_absent_S))
    ids_S = source.index.sequence_id_S
    faults = [
        f"sequence {ids_S[s]}: {rows_S[s]:,} of {stop_S[s] - start_S[s]:,} rows" for s in wrong_S
    ]
    value = f"{len(rows_S) - len(faults):,} of {len(rows_S):,} sequences"
    if faults:
        value += f"; {some(faults)}"
    return Check("Q6", name, pass_if(not faults), value, "its own tokens, each once")
