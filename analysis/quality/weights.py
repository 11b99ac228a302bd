"""Check of weights and scalars: Q9, whether they are what a router can have given."""

from __future__ import annotations

from moe_probe.analysis.accumulators.weight_faults import (
    WeightAnomalies,
    WeightFaults,
    sums_allowed,
)
from moe_probe.analysis.quality.outcome import Check, Status, pass_if, some

# Of logits a few rows may read like probabilities; of probabilities all do.
_LIKE_PROBABILITIES, _ENOUGH_ROWS = 0.99, 100
_NAMES = {
    "not_finite": "rows with NaN",
    "negative": "rows with negative weights",
    "unordered": "rows in another order",
    "wrong_sum": "rows with an impossible sum",
    "impossible": "rows with impossible scalars",
}


def weights_in_range(faults: WeightFaults | None) -> Check:
    """Check that weights are finite, not negative, in order, and sum to what a router gives.

    The order is checked where run.json names one, the sum where the layer's facts say that weights
    are normalised or a part of an unscaled softmax. Router scalars must be finite, the entropy
    within ln N, the margin not negative, and all three together other than those of probabilities.
    """
    name = "gate weights in range"
    if faults is None:
        return Check("Q9", name, Status.SKIP, reason="no gate weights (--capture weights)")
    found = faults.by_layer()
    wrong = [f"layer {layer}: {_first(rows)}" for layer, rows in found.items() if any(rows[:5])]
    rows_of = dict(zip(found, faults.rows_L.tolist(), strict=True))
    wrong += [
        f"layer {layer}: probabilities for logits"
        for layer, rows in found.items()
        if rows_of[layer] >= _ENOUGH_ROWS
        and rows.like_probabilities >= _LIKE_PROBABILITIES * rows_of[layer]
    ]
    expected = "finite, >= 0" + ", descending" * faults.descending
    if all(map(sums_allowed, faults.layers.values())):
        expected += ", sum as configured"
    value = some(wrong) if wrong else f"{len(found)} layers of {max(rows_of.values()):,} rows"
    return Check("Q9", name, pass_if(not wrong), value, expected)


def _first(anomalies: WeightAnomalies) -> str:
    number, name = next((n, _NAMES[f]) for f in _NAMES if (n := getattr(anomalies, f)))
    return f"{number:,} {name}"
