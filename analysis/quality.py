"""Quality checks Q1-Q15: whether a trace holds what the model did, before anything is said of it.

Each check answers one fault seen in a real recorder; docs/metrics.md names them.

Shape suffixes: N experts of a layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from moe_probe.analysis.accumulators.counts import Counts, LayerCounts, table_totals
from moe_probe.analysis.accumulators.rows import Anomalies, RowFaults
from moe_probe.analysis.metrics.frequency import relative_load
from moe_probe.analysis.rules import Rule
from moe_probe.analysis.scan import Accumulator, count, scan
from moe_probe.errors import TraceError
from moe_probe.trace import Capture, LayerSpec, Trace

_MIN_PREFIX_AGREEMENT = 0.99
_ORDERED_ROWS = 0.001
# Deviations of a standard normal: one trace in 700, one in 3 million.
_NOTE_DEVIATIONS, _FAIL_DEVIATIONS = 3.0, 5.0
_NO_ROWS = "no per-token rows (--capture counts)"


class Status(StrEnum):
    """How a check ended."""

    PASS = "pass"
    FAIL = "fail"
    NOTE = "note"
    """Worth knowing, neither right nor wrong."""
    SKIP = "skip"
    """The trace lacks what the check needs; its reason says what."""


@dataclass(frozen=True)
class Check:
    """The outcome of one check."""

    check: str
    """Its id."""
    name: str
    """What it looks at."""
    status: Status
    value: str = ""
    expected: str = ""
    reason: str = ""
    """Why it was skipped."""


def check_trace(trace: Trace, *, also: Sequence[Accumulator] = ()) -> list[Check]:
    """Run every check that applies to a trace, in one pass over its rows.

    Args:
        trace: The trace.
        also: Accumulators to fill in the same pass, where the trace has rows.

    Raises:
        TraceError: the trace is damaged, or of a model without routers.
    """
    if not trace.layers:
        raise TraceError(
            f"{trace.path} was recorded with --baseline: it has scores, in run.json and "
            "sequences/, and no routing. Give the trace of a model with experts."
        )
    faults: RowFaults | None = None
    if trace.capture is Capture.COUNTS:
        counts = count(trace, Rule.RAW)
    else:
        counts, faults = Counts(trace.layers, Rule.RAW), RowFaults(trace.layers)
        scan(trace, [counts, faults, *also])
    return [
        _completeness(trace),
        _row_check("Q1", "an expert twice in one row", faults, "duplicated", _none_allowed),
        _row_check("Q2", "rows of zeros only", faults, "zero", _none_above_one_slot),
        _row_check("Q3", "rows that read 0, 1, 2, ...", faults, "ordered", _ordered_allowed),
        _row_check("Q4", "ids beyond the last expert", faults, "out_of_range", _none_allowed),
        _count_bounds(trace, counts, scanned=faults is not None),
        _rows_per_sequence(trace, faults),
        _recorded_layers(trace),
        _recorded_top_k(trace),
        _replicates(trace),
        _prefix_agreement(trace),
        _expert_zero(counts.by_layer()),
    ]


def failures(checks: Iterable[Check]) -> list[Check]:
    """Return the checks that failed."""
    return [check for check in checks if check.status is Status.FAIL]


def _completeness(trace: Trace) -> Check:
    name = "every token recorded"
    table = _table(trace.run, "completeness")
    if not table:
        return Check("Q0", name, Status.SKIP, reason="run.json has no completeness table")
    total, computed, missing, *parts = _integers(
        table,
        "expected_tokens computed_tokens shortfall stored_tokens shared_tokens unsampled_tokens",
    )
    captured = _table(table, "layers")
    layers = [layer for layer in map(str, trace.layers) if captured.get(layer) != computed]
    is_complete = not missing and not layers and sum(parts) == total
    value = f"{sum(parts):,} of {total:,} tokens, {missing:,} missing"
    if layers:
        value += f"; other than {computed:,} tokens in layers {_some(layers)}"
    return Check("Q0", name, _pass_if(is_complete), value, "all tokens, 0 missing")


def _row_check(
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
    return Check(check, name, _pass_if(is_good), value, f"<= {most:.2%} of rows" if most else "0")


def _none_allowed(_: LayerSpec) -> float:
    return 0.0


def _none_above_one_slot(spec: LayerSpec) -> float:
    return 0.0 if spec.top_k > 1 else 1.0


def _ordered_allowed(spec: LayerSpec) -> float:
    # Ten times the share under uniform routing, since real routers have favourite sets.
    by_chance = 10 / math.comb(spec.num_experts, spec.top_k)
    return _ORDERED_ROWS + by_chance if spec.top_k > 1 else 1.0


def _count_bounds(trace: Trace, counts: Counts, *, scanned: bool) -> Check:
    name = "counts add up"
    expected = "k per token, one per expert"
    faults = []
    totals = None
    # While a recording goes on, its tables lag behind its rows.
    if scanned and not trace.is_recording:
        totals = table_totals(trace)
        expected += "; tables = rows"
    for layer in counts.by_layer():
        full = layer.tokens * layer.spec.top_k
        if layer.assignments > full or (layer.assignments < full and not layer.spec.empty_slots):
            faults.append(f"layer {layer.spec.layer}: {layer.assignments:,} of {full:,} selections")
        elif layer.counts_N.max() > layer.tokens:
            faults.append(f"layer {layer.spec.layer}: an expert beyond {layer.tokens:,} tokens")
        elif totals and (totals[layer.spec.layer] != layer.counts_N).any():
            faults.append(f"layer {layer.spec.layer}: the counts tables differ from the rows")
    value = _some(faults) if faults else f"{len(counts.layers)} layers exact"
    return Check("Q5", name, _pass_if(not faults), value, expected)


def _rows_per_sequence(trace: Trace, faults: RowFaults | None) -> Check:
    name = "rows per sequence"
    if faults is None:
        return Check("Q6", name, Status.SKIP, reason=_NO_ROWS)
    names = ("sequence_id", "num_tokens", "prefix_tokens", "multiplicity", "sampled")
    wrong = []
    columns = [trace.sequences[column].to_pylist() for column in names]
    for sequence, stop, start, multiplicity, sampled in zip(*columns, strict=True):
        rows = faults.rows_by_sequence[sequence]
        # Duplicates and sequences outside the sample need not store anything.
        may_be_absent = not sampled or multiplicity == 0
        position_sum = (start + stop - 1) * (stop - start) // 2
        is_whole = (
            rows == stop - start and faults.position_sum_by_sequence[sequence] == position_sum
        )
        if not is_whole and (rows or not may_be_absent):
            wrong.append(f"sequence {sequence}: {rows:,} of {stop - start:,} rows")
    total = trace.sequences.num_rows
    value = f"{total - len(wrong):,} of {total:,} sequences"
    if wrong:
        value += f"; {_some(wrong)}"
    return Check("Q6", name, _pass_if(not wrong), value, "its own tokens, each once")


def _recorded_layers(trace: Trace) -> Check:
    name = "recorded layers"
    expected = _fact(trace, "num_moe_layers")
    if expected is None:
        return Check("Q7", name, Status.SKIP, reason="run.json has no number of MoE layers")
    found = len(trace.layers)
    return Check("Q7", name, _pass_if(found == expected), str(found), f"{expected} MoE layers")


def _recorded_top_k(trace: Trace) -> Check:
    name = "experts per token"
    expected = _fact(trace, "top_k")
    if expected is None:
        return Check("Q8", name, Status.SKIP, reason="run.json has no top_k of the model")
    found = sorted({spec.top_k for spec in trace.layers.values()})
    value = ", ".join(map(str, found))
    return Check("Q8", name, _pass_if(found == [expected]), value, f"{expected} in every layer")


def _replicates(trace: Trace) -> Check:
    name = "runs per distinct prompt"
    hashes = trace.sequences["prompt_hash"].to_pylist()
    if not any(hashes):
        return Check("Q12", name, Status.SKIP, reason="the sequences have no prompt hashes")
    runs = int(trace.sequences["multiplicity"].to_numpy().sum())
    prompts = len(set(filter(None, hashes))) + hashes.count("")
    status = Status.PASS if runs == prompts else Status.NOTE
    return Check("Q12", name, status, f"{runs / prompts:.2f}", "1, or the number of choices")


def _prefix_agreement(trace: Trace) -> Check:
    name = "shared prefixes routed alike"
    table = _table(trace.run, "prefix_check")
    if not table.get("rows"):
        return Check("Q14", name, Status.SKIP, reason="no prefix was run again to compare")
    sequences, rows, equal = _integers(table, "sequences rows equal_rows")
    share = equal / rows
    value = f"{share:.2%} of {rows:,} rows in {sequences:,} sequences"
    expected = f">= {_MIN_PREFIX_AGREEMENT:.0%}"
    return Check("Q14", name, _pass_if(share >= _MIN_PREFIX_AGREEMENT), value, expected)


def _expert_zero(layers: Iterable[LayerCounts]) -> Check:
    """Compare expert 0's rank with chance: an expert's index means nothing to a trained router.

    Rows of zeros raise the load of expert 0 in every layer, so its mean rank over the layers goes
    up before it stands out in any of them. Under exchangeable experts a rank (0, 1] is uniform.
    """
    name = "expert 0 loaded like the others"
    ranks, variance, loads = [], 0.0, []
    for layer in layers:
        if layer.assignments:
            load_N = relative_load(layer.counts_N)
            below, equal = (load_N < load_N[0]).sum(), (load_N == load_N[0]).sum()
            ranks.append((below + equal / 2) / len(load_N))
            variance += (1 - 1 / len(load_N) ** 2) / 12
            loads.append(load_N[0])
    if not variance:
        return Check("Q15", name, Status.SKIP, reason="no selections among several experts")
    deviations = (np.mean(ranks) - 0.5) * len(ranks) / math.sqrt(variance)
    is_odd, is_wrong = deviations > _NOTE_DEVIATIONS, deviations > _FAIL_DEVIATIONS
    status = Status.FAIL if is_wrong else Status.NOTE if is_odd else Status.PASS
    value = f"mean rank {np.mean(ranks):.2f}, median load {np.median(loads):.2f}"
    return Check("Q15", name, status, value, f"0.50, < {_FAIL_DEVIATIONS:.0f} sd above")


def _fact(trace: Trace, name: str) -> int | None:
    facts = _table(trace.run, "model_facts")
    return None if facts.get(name) is None else _integers(facts, name)[0]


def _table(facts: dict[str, Any], name: str) -> dict[str, Any]:
    table = facts.get(name) or {}
    if not isinstance(table, dict):
        raise TraceError(f"{name} in run.json is {table!r}, not a table. Record again.")
    return table


def _integers(table: dict[str, Any], names: str) -> list[int]:
    try:
        return [int(table[name]) for name in names.split()]
    except (KeyError, TypeError, ValueError) as error:
        raise TraceError(f"A table in run.json lacks {names}: {error!r}. Record again.") from error


def _pass_if(condition: bool) -> Status:
    return Status.PASS if condition else Status.FAIL


def _some(texts: list[str]) -> str:
    """Name the first three."""
    more = f" and {len(texts) - 3} more" if len(texts) > 3 else ""
    return "; ".join(texts[:3]) + more
