"""Loads of logical experts in the form that tools which place experts on devices read.

Sources: `rebalance_experts` of DeepSeek's EPLB, and SGLang's `--init-expert-location` with what
its expert distribution recorder dumps.

Shape suffixes: L layers, N experts.
"""

from __future__ import annotations

import numpy as np

from moe_probe.analysis.exports.choice import Choice
from moe_probe.analysis.exports.counts import count
from moe_probe.analysis.quality.outcome import fact
from moe_probe.errors import UsageError
from moe_probe.trace import LayerSpec

# More than any model has. The number comes from the trace, which nobody vouches for.
_MOST_LAYERS = 2_000


def expert_loads(choice: Choice) -> np.ndarray:
    """Selections of every routed expert: int64 [L, N], one row per chosen MoE layer.

    Zero experts, which no device has to hold, are left out: their ids come after the others.

    Raises:
        UsageError: the layers differ in their number of experts, or there is no such subject.
        TraceError: the trace is damaged, or does not have what the rule needs.
    """
    sizes = {layer: _placed_experts(spec) for layer, spec in choice.layers.items()}
    if len(set(sizes.values())) > 1:
        some = ", ".join(f"layer {layer}: {size}" for layer, size in list(sizes.items())[:3])
        raise UsageError(
            f"The layers differ in their number of experts ({some}, ...), and a matrix has one. "
            "Choose layers that agree with --layers."
        )
    counts = count(choice)
    wants_S = choice.wants_S(counts.axes.groups)
    by_layer = [
        counts.by_group(layer)[0][wants_S].sum(axis=0)[:size] for layer, size in sizes.items()
    ]
    return np.stack(by_layer)


def logical_count(choice: Choice) -> np.ndarray:
    """The same for every layer of the model, as one step: int64 [1, layers of the model, N].

    Layers without routed experts have rows of zeros. Their number is what run.json says of the
    model, or ends with the last recorded layer where it says nothing.

    Raises:
        UsageError: as above, or some MoE layers were not chosen.
        TraceError: as above.
    """
    if len(choice.layers) < len(choice.trace.layers):
        raise UsageError(
            "SGLang reads a row for every layer of the model, so --layers cannot leave any out. "
            "Use --format eplb for some layers."
        )
    last = max(choice.layers)
    number = known_layers(choice) or last + 1
    if not last < number <= _MOST_LAYERS:
        raise UsageError(
            f"run.json says the model has {number} layers, and layer {last} was recorded, which "
            "does not go together. Use --format eplb."
        )
    loads_LN = expert_loads(choice)
    whole = np.zeros((1, number, loads_LN.shape[1]), np.int64)
    whole[0, list(choice.layers)] = loads_LN
    return whole


def known_layers(choice: Choice) -> int | None:
    """Return how many layers the model has, experts or not; None where run.json does not say."""
    return fact(choice.trace, "num_layers")


def _placed_experts(spec: LayerSpec) -> int:
    zero = spec.facts.get("num_zero_experts", 0)
    is_possible = isinstance(zero, int) and 0 <= zero < spec.num_experts
    return spec.num_experts - int(zero) if is_possible else spec.num_experts
