"""Gate weights and router scalars of stored rows that no router gives. Additive.

Rows are looked at as they are stored, whatever the counting rule.

Shape suffixes: T tokens of a block, K slots; T3 is ROUTER_SCALARS of each token.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from moe_probe.analysis.accumulators.faults import Faults
from moe_probe.analysis.reading.source import Rows
from moe_probe.trace import LayerSpec

# Weights may have been computed in bfloat16 and were rounded to float16.
_ROUNDING = 0.01
_HALF_ULP = 2.0**-11
_HALF_TINY = 2.0**-24


class WeightAnomalies(NamedTuple):
    """Rows of one layer with weights or scalars that cannot be."""

    not_finite: int = 0
    """Rows with a weight that is NaN or infinite."""
    negative: int = 0
    """Rows with a negative weight."""
    unordered: int = 0
    """Rows whose weights do not descend, where the trace says that slots do."""
    wrong_sum: int = 0
    """Rows whose weights do not sum to what the layer's facts say: see `sums_allowed`."""
    impossible: int = 0
    """Rows with a scalar that is not finite, an entropy outside [0, ln N] or a margin below 0."""
    like_probabilities: int = 0
    """Rows whose scalars may be those of numbers that sum to 1, instead of logits."""


def is_unscaled_softmax(spec: LayerSpec) -> bool:
    """Whether by the layer's facts its weights are a part of a softmax, multiplied by nothing."""
    return spec.facts.get("scoring") == "softmax" and spec.facts.get("scale", 1) in (1, None)


def sums_allowed(spec: LayerSpec) -> list[tuple[float, float]]:
    """Return the least and the greatest sum of a row's weights; none where anything may be.

    Normalised weights sum to 1, or to the scale where that was applied; they are not where there
    is one slot, and need not be where slots may be empty or experts return their input. A part of a
    softmax sums to 1 at most, and not to 0.
    """
    facts = spec.facts
    is_whole = spec.top_k > 1 and not spec.empty_slots and not facts.get("num_zero_experts")
    if facts.get("normalized") is True and is_whole:
        sums = {1.0, float(facts.get("scale") or 1)}
        return [(value * (1 - _ROUNDING), value * (1 + _ROUNDING)) for value in sums]
    if is_unscaled_softmax(spec):
        return [(0.0 if spec.empty_slots else _HALF_TINY, 1 + _ROUNDING)]
    return []


class WeightFaults(Faults):
    """Stored rows by layer, and those among them whose weights look like a fault.

    Args:
        layers: The layers to look at, by the model's own index.
        descending: Whether slots are said to be in descending order of weight.
    """

    kind = "weight_faults"
    sorts = len(WeightAnomalies._fields)
    weights = True

    def __init__(self, layers: Mapping[int, LayerSpec], *, descending: bool) -> None:
        super().__init__(layers)
        self.descending = descending

    def add(self, rows: Rows, layer: int, kernels: ModuleType) -> None:
        """Look at one layer of a part."""
        spec, block = self.layers[layer], rows.block
        scalars_T3 = block.router_scalars(layer) if spec.scalars else None
        self.add_arrays(layer, block.topk_ids(layer), block.topk_weights(layer), scalars_T3)

    def add_arrays(
        self,
        layer: int,
        ids_TK: np.ndarray,
        weights_TK: np.ndarray,
        scalars_T3: np.ndarray | None = None,
    ) -> None:
        """Look at one layer of some rows; without `scalars_T3` at its weights only."""
        spec, descending = self.layers[layer], self.descending
        found = self.inspect(spec, ids_TK, weights_TK, scalars_T3, descending=descending)
        self.note(layer, len(weights_TK), found)

    def by_layer(self) -> dict[int, WeightAnomalies]:
        """Return what was found in each layer."""
        found = (WeightAnomalies(*row) for row in self.faults_LF.tolist())
        return dict(zip(self.layers, found, strict=True))

    def settings(self) -> dict[str, Any]:
        return {"descending": self.descending}

    @staticmethod
    def inspect(
        spec: LayerSpec,
        ids_TK: np.ndarray,
        weights_TK: np.ndarray,
        scalars_T3: np.ndarray | None,
        *,
        descending: bool,
    ) -> WeightAnomalies:
        """Count the rows of one layer that show each anomaly.

        Args:
            spec: The layer. Empty slots are looked at as if their weight were 0.
            ids_TK: Expert ids, for the empty slots.
            weights_TK: Gate weights, float16.
            scalars_T3: ROUTER_SCALARS, float16, or None.
            descending: Whether weights must descend.
        """
        weights_KT = np.ascontiguousarray(weights_TK.T).astype(np.float32)
        if spec.none_id is not None:
            weights_KT[ids_TK.transpose() == spec.none_id] = 0
        finite_T = np.isfinite(weights_KT).all(axis=0)
        sum_T = weights_KT.sum(axis=0, where=finite_T)
        allowed = sums_allowed(spec)
        right_T = ~finite_T | (not allowed)
        for least, most in allowed:
            right_T |= (sum_T >= least) & (sum_T <= most)
        scalar_faults = (0, 0) if scalars_T3 is None else _inspect_scalars(spec, scalars_T3)
        return WeightAnomalies(
            int((~finite_T).sum()),
            int((weights_KT < 0).any(axis=0).sum()),
            int((weights_KT[:-1] < weights_KT[1:]).any(axis=0).sum()) if descending else 0,
            int((~right_T).sum()),
            *scalar_faults,
        )


def _inspect_scalars(spec: LayerSpec, scalars_T3: np.ndarray) -> tuple[int, int]:
    """Count impossible rows, and those that may be of probabilities.

    Of p on the simplex, ln sum exp p is least for the uniform p, ln N + 1/N, and most for a
    certain one, ln(N - 1 + e); its k-th largest is 1/k at most, and so is the margin.
    """
    num_experts = spec.num_experts
    logsumexp_T, entropy_T, margin_T = scalars_T3.T.astype(np.float32)
    sound_T = np.isfinite(logsumexp_T) & np.isfinite(entropy_T) & np.isfinite(margin_T)
    most = math.log(num_experts) * (1 + _HALF_ULP) + _HALF_ULP
    sound_T &= (entropy_T >= -_HALF_ULP) & (entropy_T <= most) & (margin_T >= 0)
    low, high = math.log(num_experts) + 1 / num_experts, math.log(num_experts - 1 + math.e)
    like_T = sound_T & (margin_T <= (1 + _HALF_ULP) / spec.top_k)
    like_T &= logsumexp_T >= low * (1 - _HALF_ULP)
    like_T &= logsumexp_T <= high * (1 + _HALF_ULP)
    return int((~sound_T).sum()), int(like_T.sum())
