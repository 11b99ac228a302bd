"""S3 and S5: gate weights by expert, and histograms of how sure the router is. Additive.

Shape suffixes: T tokens of a part, K slots, S groups, N experts of a layer, Q quantities, H bins,
P pieces; T3 is ROUTER_SCALARS of each token.
"""

from __future__ import annotations

from types import ModuleType

import numpy as np

from moe_probe.analysis.accumulators.base import Arrays, LayerAccumulator
from moe_probe.analysis.accumulators.counted import Counted
from moe_probe.analysis.metrics.confidence import (
    BINS,
    EDGES,
    histogram,
    moments,
    weight_shares,
)
from moe_probe.analysis.reading.source import Rows
from moe_probe.trace import ROUTER_SCALARS, LayerSpec


class WeightSums(LayerAccumulator):
    """S3, float64: `weight_sum_SN` and `weight_square_sum_SN` of each expert's gate weights,
    `share_sum_SN` of its parts of the token's total, and `mass_sum_S` of those totals."""

    kind = "weights"
    weights = True

    def empty(self, spec: LayerSpec) -> Arrays:
        groups = self.axes.length("S")
        names = ("weight_sum_SN", "weight_square_sum_SN", "share_sum_SN")
        tables = {name: np.zeros((groups, spec.num_experts)) for name in names}
        return tables | {"mass_sum_S": np.zeros(groups)}

    def add(self, rows: Rows, layer: int, kernels: ModuleType) -> None:
        spec, arrays = self.layers[layer], self.arrays[layer]
        counted = Counted.of(rows.pieces(self.rule))
        token_T, weight_T, group_T = counted.row_T, counted.weight_T, counted.group_T
        ids_TK = rows.topk_ids(layer)[token_T].astype(np.int64)
        gates_TK = _filled(ids_TK, rows.topk_weights(layer)[token_T], spec)
        mass_T = gates_TK.sum(axis=1)
        arrays["mass_sum_S"] += np.bincount(group_T, mass_T * weight_T, len(arrays["mass_sum_S"]))
        share_TK = gates_TK / np.where(mass_T > 0, mass_T, 1)[:, None]
        groups, experts = arrays["share_sum_SN"].shape
        key_TK = np.minimum(ids_TK, experts) + group_T[:, None] * (experts + 1)
        for name, values_TK in (
            ("weight_sum_SN", gates_TK),
            ("weight_square_sum_SN", gates_TK**2),
            ("share_sum_SN", share_TK),
        ):
            values = (values_TK * weight_T[:, None]).ravel()
            sums = np.bincount(key_TK.ravel(), values, groups * (experts + 1))
            arrays[name] += sums.reshape(groups, experts + 1)[:, :experts]


class Confidence(LayerAccumulator):
    """S5: histograms `bins_QH` int64 of the quantities of `confidence.EDGES`, and `moments_Q3`
    float64, the number of finite values and the sums of these and of their squares.

    Those of the router's logits are empty in a layer whose logits the engine did not give.
    """

    kind = "confidence"
    weights = True

    def empty(self, spec: LayerSpec) -> Arrays:
        return {
            "bins_QH": np.zeros((len(EDGES), BINS), np.int64),
            "moments_Q3": np.zeros((len(EDGES), 3)),
        }

    def add(self, rows: Rows, layer: int, kernels: ModuleType) -> None:
        spec = self.layers[layer]
        counted = Counted.of(rows.pieces(self.rule))
        token_T, weight_T = counted.row_T, counted.weight_T
        ids_TK = rows.topk_ids(layer)[token_T]
        gates_TK = _filled(ids_TK, rows.topk_weights(layer)[token_T], spec)
        values = dict(zip(("top_share", "effective_k"), weight_shares(gates_TK), strict=True))
        if spec.scalars:
            scalars_T3 = rows.router_scalars(layer)[token_T].astype(np.float32)
            values |= dict(zip(ROUTER_SCALARS, scalars_T3.T, strict=True))
        arrays = self.arrays[layer]
        for quantity, row_H, moments_3 in zip(EDGES, *arrays.values(), strict=True):
            if quantity in values:
                facts = (spec.num_experts, spec.top_k)
                row_H += histogram(quantity, values[quantity], weight_T, *facts)
                moments_3 += moments(values[quantity], weight_T)


def _filled(ids_TK: np.ndarray, weights_TK: np.ndarray, spec: LayerSpec) -> np.ndarray:
    """Weights as float64, 0 in slots that name no expert."""
    return np.where(ids_TK < spec.num_experts, weights_TK.astype(np.float64), 0.0)
