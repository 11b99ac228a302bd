"""Checks of single rows: Q1 to Q4, and Q6, rows per sequence."""

from __future__ import annotations

import math
from collections.abc import Callable

from moe_probe.analysis.accumulators.rows import Anomalies, RowFaults
from moe_probe.analysis.quality.outcome import Check, Status, pass_if, some
from moe_probe.trace import LayerSpec, Trace

_ORDERED_ROWS = 0.001
_NO_ROWS = "no per-token rows (--capture counts)"


def row_check(
    check: str,
    name: str,
    faults: RowFaults | None,
    field: str,
    allowed: Callable[[LayerSpec], float],
) -> Check:
    """Compare one kind of anomaly with the share of rows that may show it in each layer."""
    if faults is None:
        return Check(check, name, Status.SKIP, reason=_NO_ROWS)
    layers = {n: spec for n, spec in faults.layers.items() if allowed(spec) < 1}
    if not layers:
        return Check(check, name, Status.SKIP, reason="such rows are normal with one slot")
    by_layer: dict[int, Anomalies] = faults.by_layer()
    rows = {layer: getattr(by_layer[layer], field) for layer in layers}
    is_good = all(rows[n] <= allowed(spec) * faults.num_rows for n, spec in layers.items())
    worst = max(rows, key=lambda layer: rows[layer])
    value = f"{rows[worst]:,} of {faults.num_rows:,} rows"
    if rows[worst]:
        value += f" in layer {worst}, {sum(rows.values()):,} over all layers"
    most = max(allowed(spec) for spec in layers.values())
    return Check(check, name, pass_if(is_good), value, f"<= {most:.2%} of rows" if most else "0")


def none_allowed(_: LayerSpec) -> float:
    return 0.0


def none_above_one_slot(spec: LayerSpec) -> float:
    return 0.0 if spec.top_k > 1 else 1.0


def ordered_allowed(spec: LayerSpec) -> float:
    # Ten times the share under uniform routing, since real routers have favourite sets.
    by_chance = 10 / math.comb(spec.num_experts, spec.top_k)
    return _ORDERED_ROWS + by_chance if spec.top_k > 1 else 1.0


def rows_per_sequence(trace: Trace, faults: RowFaults | None) -> Check:
    name = "rows per sequence"
    if faults is None:
        return Check("Q6", name, Status.SKIP, reason=_NO_ROWS)
    names = ("sequence_id", "num_tokens", "prefix_tokens", "multiplicity", "sampled", "rows_kept")
    wrong = []
    columns = [trace.sequences[column].to_pylist() for column in names]
    for sequence, stop, start, multiplicity, sampled, kept in zip(*columns, strict=True):
        rows = faults.rows_by_sequence[sequence]
        # Duplicates, and sequences outside the sample or the size limit, need not store anything.
        may_be_absent = not sampled or multiplicity == 0 or not kept
        position_sum = (start + stop - 1) * (stop - start) // 2
        is_whole = (
            rows == stop - start and faults.position_sum_by_sequence[sequence] == position_sum
        )
        if not is_whole and (rows or not may_be_absent):
            wrong.append(f"sequence {sequence}: {rows:,} of {stop - start:,} rows")
    total = trace.sequences.num_rows
    value = f"{total - len(wrong):,} of {total:,} sequences"
    if wrong:
        value += f"; {some(wrong)}"
    return Check("Q6", name, pass_if(not wrong), value, "its own tokens, each once")
