"""S2, S7, S9 and S11: selections by slot, in pairs, from layer to layer, and by position. Additive.

Shape suffixes: T tokens of a part, K slots, N and M experts of two layers, B position bins,
P pieces, C clusters.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from types import ModuleType

import numpy as np

from moe_probe.analysis.accumulators.base import Arrays, LayerAccumulator, TableAccumulator
from moe_probe.analysis.reading.pieces import by_octave
from moe_probe.analysis.reading.rules import Rule
from moe_probe.analysis.reading.source import Rows, Source
from moe_probe.errors import MoeProbeError
from moe_probe.memory import gib
from moe_probe.trace import LayerSpec
from moe_probe.trace.schema import MAX_SEQUENCE_TOKENS

POSITION_BINS = MAX_SEQUENCE_TOKENS.bit_length() + 1
"""Positions 0, 1, 2-3, 4-7, ...: bin b begins at position 2^(b-1)."""
# Tables of the same size that `metrics.coactivation.coactivation_table` has at once.
_COPIES = 6


class SlotCounts(TableAccumulator):
    """S2: selections `slot_counts_KN` int64 of every slot.

    Slot order is the router's rank or descending weight, as run.json says.
    """

    kind, field = "slot_counts", "slots"

    def empty(self, spec: LayerSpec) -> Arrays:
        return {"slot_counts_KN": np.zeros((spec.top_k, spec.num_experts), np.int64)}

    def table(self, rows: Rows, layer: int) -> np.ndarray:
        return self.arrays[layer]["slot_counts_KN"]


class PairCounts(TableAccumulator):
    """S7: tokens `pairs_NN` int64 that select both of two experts, symmetric, 0 on the diagonal."""

    kind = field = "pairs"

    def empty(self, spec: LayerSpec) -> Arrays:
        return {"pairs_NN": np.zeros((spec.num_experts, spec.num_experts), np.int64)}

    def table(self, rows: Rows, layer: int) -> np.ndarray:
        return self.arrays[layer]["pairs_NN"]


class FlowCounts(LayerAccumulator):
    """S9: tokens by the expert in the first slot here and in that of the next layer.

    A layer whose next decoder layer has no experts is joined to the next one that has; the last
    has no array.
    """

    kind = "flows"
    lookahead = True

    def empty(self, spec: LayerSpec) -> Arrays:
        following = self.following(spec.layer)
        if following is None:
            return {}
        return {"flows_NM": np.zeros((spec.num_experts, following.num_experts), np.int64)}

    def following(self, layer: int) -> LayerSpec | None:
        """The next layer that has experts."""
        later = [number for number in self.layers if number > layer]
        return self.layers[min(later)] if later else None

    def add(self, rows: Rows, layer: int, kernels: ModuleType) -> None:
        following = self.following(layer)
        if following is not None:
            from_T = rows.topk_ids(layer)[:, 0]
            to_T = rows.topk_ids(following.layer)[:, 0]
            table_NM = self.arrays[layer]["flows_NM"]
            kernels.count_flows(table_NM, from_T, to_T, rows.pieces(self.rule))


def refuse_large(layers: Mapping[int, LayerSpec], available: int) -> None:
    """Raise MoeProbeError where pairs and flows of all layers need more than `available` bytes.

    Counted are their tables, which exist at the same time, and the copies that evaluating the
    largest one takes.
    """
    experts = [layers[number].num_experts for number in sorted(layers)]
    entries = sum(n * n for n in experts) + sum(n * m for n, m in itertools.pairwise(experts))
    entries += _COPIES * max(experts, default=0) ** 2
    need = entries * np.dtype(np.int64).itemsize
    if need > available:
        number = f"{len(experts)} MoE layer" + "s" * (len(experts) > 1)
        raise MoeProbeError(
            f"Tables of pairs and flows of {max(experts)} experts in {number} need {gib(need)} "
            f"with what is computed of them, and this process may take {gib(available)}. Use a "
            "machine with more memory, or count alone: "
            "moe-probe export TRACE --format counts -o counts.csv"
        )


def position_tokens(source: Source, rule: Rule) -> np.ndarray:
    """Return how many tokens of each cluster a rule counts by octave of position: int64 [C, B]."""
    tokens_CB = np.zeros((len(source.index.clusters), POSITION_BINS), np.int64)
    for part in source.parts:
        pieces, bin_P = by_octave(source.pieces(part, rule))
        np.add.at(tokens_CB, (pieces.cluster_P, bin_P), pieces.tokens_P)
    return tokens_CB


class PositionCounts(LayerAccumulator):
    """S11: selections `position_counts_BN`, tokens `position_tokens_B`, by octave of position."""

    kind = "positions"

    def empty(self, spec: LayerSpec) -> Arrays:
        return {
            "position_counts_BN": np.zeros((POSITION_BINS, spec.num_experts), np.int64),
            "position_tokens_B": np.zeros(POSITION_BINS, np.int64),
        }

    def add(self, rows: Rows, layer: int, kernels: ModuleType) -> None:
        pieces, bin_P = rows.octaves(self.rule)
        arrays = self.arrays[layer]
        np.add.at(arrays["position_tokens_B"], bin_P, pieces.tokens_P)
        kernels.count_rows(arrays["position_counts_BN"], rows.topk_ids(layer), pieces, bin_P)
