"""Checks of what the recording says of itself: Q0, Q7, Q8, Q10, Q12 and Q14."""

from __future__ import annotations

import pyarrow.compute as pc

from moe_probe.analysis.quality.outcome import Check, Status, fact, integers, listed, pass_if, some
from moe_probe.analysis.quality.outcome import table as table_of
from moe_probe.trace import Trace

_MIN_PREFIX_AGREEMENT = 0.99


def completeness(trace: Trace) -> Check:
    name = "every token recorded"
    table = table_of(trace.run, "completeness")
    if not table:
        return Check("Q0", name, Status.SKIP, reason="run.json has no completeness table")
    total, computed, missing, *parts = integers(
        table,
        "expected_tokens computed_tokens shortfall stored_tokens shared_tokens unsampled_tokens",
    )
    captured = table_of(table, "layers")
    layers = [layer for layer in map(str, trace.layers) if captured.get(layer) != computed]
    is_complete = not missing and not layers and sum(parts) == total
    value = f"{sum(parts):,} of {total:,} tokens, {missing:,} missing"
    if layers:
        value += f"; other than {computed:,} tokens in layers {some(layers)}"
    return Check("Q0", name, pass_if(is_complete), value, "all tokens, 0 missing")


def recorded_layers(trace: Trace) -> Check:
    """Compare the recorded layers with the model's MoE layers: each by its index where it is known.

    Layers behind the last decoder layer, which predict further tokens, are none of the model.
    """
    name = "recorded layers"
    expected, depth = fact(trace, "num_moe_layers"), fact(trace, "num_layers")
    known = listed(trace, "moe_layers")
    if expected is None and known is None:
        return Check("Q7", name, Status.SKIP, reason="run.json has no number of MoE layers")
    found = list(trace.layers)
    lacking = sorted(set(known or ()) - set(found))
    limit = depth if known is None else None
    others = sorted(set(found) - set(known)) if known is not None else []
    others += [layer for layer in found if limit is not None and layer >= limit]
    number = expected if known is None else len(known)
    value = str(len(found))
    value += f"; without {some(list(map(str, lacking)))}" if lacking else ""
    value += f"; also {some(list(map(str, others)))}, none of them" if others else ""
    is_good = len(found) == number and not lacking and not others
    return Check("Q7", name, pass_if(is_good), value, f"{number} MoE layers")


def recorded_top_k(trace: Trace) -> Check:
    """Compare every layer's slots with the experts per token that the configuration names."""
    name = "experts per token"
    expected, by_layer = fact(trace, "top_k"), listed(trace, "top_k_by_layer")
    if expected is None:
        return Check("Q8", name, Status.SKIP, reason="run.json has no top_k of the model")
    wanted = {
        layer: by_layer[layer] if by_layer and layer < len(by_layer) else expected
        for layer in trace.layers
    }
    wrong = [
        f"layer {layer}: {spec.top_k}"
        for layer, spec in trace.layers.items()
        if spec.top_k != wanted[layer]
    ]
    value = ", ".join(map(str, sorted({spec.top_k for spec in trace.layers.values()})))
    value += f"; {some(wrong)}" if wrong else ""
    shown = ", ".join(map(str, sorted(set(wanted.values()))))
    return Check("Q8", name, pass_if(not wrong), value, f"{shown} in every layer")


def recomputed_ids() -> Check:
    """Q10: whether scores lead to the ids; no capture level has scores, so it is always skipped.

    The ids are those the model used. They must not be recomputed from logits: bias, groups and
    ties make that wrong for some routers.
    """
    reason = "no scores of all experts are captured; ids are as used"
    return Check("Q10", "ids follow from scores", Status.SKIP, reason=reason)


def replicates(trace: Trace) -> Check:
    name = "runs per distinct prompt"
    hashes = trace.sequences["prompt_hash"]
    without = pc.sum(pc.equal(hashes, "")).as_py() or 0
    known = pc.count_distinct(hashes).as_py() - bool(without)
    if not known:
        return Check("Q12", name, Status.SKIP, reason="the sequences have no prompt hashes")
    runs = int(trace.sequences["multiplicity"].to_numpy().sum())
    prompts = known + without
    status = Status.PASS if runs == prompts else Status.NOTE
    return Check("Q12", name, status, f"{runs / prompts:.2f}", "1, or the number of choices")


def prefix_agreement(trace: Trace) -> Check:
    name = "shared prefixes routed alike"
    table = table_of(trace.run, "prefix_check")
    if not table.get("rows"):
        return Check("Q14", name, Status.SKIP, reason="no prefix was run again to compare")
    sequences, rows, equal = integers(table, "sequences rows equal_rows")
    share = equal / rows
    value = f"{share:.2%} of {rows:,} rows in {sequences:,} sequences"
    expected = f">= {_MIN_PREFIX_AGREEMENT:.0%}"
    return Check("Q14", name, pass_if(share >= _MIN_PREFIX_AGREEMENT), value, expected)
