"""Selections by token id and expert, apart for two halves of the documents. Additive.

Shape suffixes: T counted rows, K slots, N experts of a layer, H halves, X token ids that occur.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType

import numpy as np

from moe_probe.analysis.accumulators.base import Arrays, LayerAccumulator
from moe_probe.analysis.accumulators.counted import Counted
from moe_probe.analysis.accumulators.documents import smallest_type
from moe_probe.analysis.metrics.token_counts import VocabularyCounts
from moe_probe.analysis.reading.index import TraceIndex
from moe_probe.analysis.reading.rules import Rule
from moe_probe.analysis.reading.source import Rows, Source
from moe_probe.analysis.statistics.clusters import halves
from moe_probe.errors import TraceError
from moe_probe.trace import LayerSpec


def counted_token_ids(source: Source, rule: Rule) -> tuple[np.ndarray, np.ndarray]:
    """Return the token ids that a rule counts, ascending, and how often: two int64 [X].

    Raises TraceError where the trace does not say which token a row is.
    """
    token_ids_X, tokens_X = np.zeros(0, np.int64), np.zeros(0, np.int64)
    for part in source.parts:
        counted = Counted.of(source.pieces(part, rule))
        token_id_T = source.token_ids(part)[counted.row_T].astype(np.int64)
        if (token_id_T < 0).any():
            raise TraceError(
                f"{source.trace.path} does not say which token each row is, which this needs. "
                "Record with MOE_PROBE_TOKENS=1."
            )
        joined = np.concatenate([token_ids_X, token_id_T])
        token_ids_X, place = np.unique(joined, return_inverse=True)
        number = np.concatenate([tokens_X, counted.weight_T])
        tokens_X = np.bincount(place, number, len(token_ids_X)).astype(np.int64)
    return token_ids_X, tokens_X


class TokenCounts(LayerAccumulator):
    """S10: `token_counts_HXN` and `tokens_HX`, by half of the documents and token id.

    The halves are those of `statistics.clusters.halves`; a shared prefix is a document like others.

    Args:
        layers: The layers to fill.
        rule: How often each token counts.
        index: Of the trace.
        token_ids_X: The token ids that occur, ascending.
        most: An upper limit of any one's tokens, which decides the type of `token_counts_HXN`.
    """

    kind = "token_counts"

    def __init__(
        self,
        layers: Mapping[int, LayerSpec],
        rule: Rule,
        index: TraceIndex,
        *,
        token_ids_X: np.ndarray,
        most: int,
    ) -> None:
        self._token_ids_X = token_ids_X
        self._dtype = smallest_type(most)
        self._half_C = halves(index.clusters.keys)
        super().__init__(layers, rule, index)

    def empty(self, spec: LayerSpec) -> Arrays:
        ids = len(self._token_ids_X)
        return {
            "token_ids_X": self._token_ids_X,
            "tokens_HX": np.zeros((2, ids), np.int64),
            "token_counts_HXN": np.zeros((2, ids, spec.num_experts), self._dtype),
        }

    def add(self, rows: Rows, layer: int, kernels: ModuleType) -> None:
        counted, arrays = Counted.of(rows.pieces(self.rule)), self.arrays[layer]
        token_id_T = rows.source.token_ids(rows.part)[counted.row_T]
        place_T = np.searchsorted(arrays["token_ids_X"], token_id_T)
        half_T = self._half_C[counted.cluster_T]
        np.add.at(arrays["tokens_HX"], (half_T, place_T), counted.weight_T)
        table_HXN = arrays["token_counts_HXN"]
        _, ids, experts = table_HXN.shape
        weight_T = counted.weight_T.astype(table_HXN.dtype)
        row_T, flat = (half_T * ids + place_T) * experts, table_HXN.reshape(-1)
        for expert_T in rows.topk_ids(layer)[counted.row_T].T:
            is_real_T = expert_T < experts
            np.add.at(flat, (row_T + expert_T)[is_real_T], weight_T[is_real_T])

    def joined(self, mine: Arrays, theirs: Arrays) -> Arrays:
        """Bring the token ids of both together."""
        token_ids_X = np.union1d(mine["token_ids_X"], theirs["token_ids_X"])
        sums: Arrays = {"token_ids_X": token_ids_X}
        for name in ("tokens_HX", "token_counts_HXN"):
            shape = (2, len(token_ids_X), *mine[name].shape[2:])
            total = np.zeros(shape, np.int64)
            for shard in (mine, theirs):
                total[:, np.searchsorted(token_ids_X, shard["token_ids_X"])] += shard[name]
            sums[name] = total
        return sums

    def halves(self, layer: int) -> tuple[VocabularyCounts, VocabularyCounts]:
        """Return the selections of both halves in one layer."""
        arrays = self.arrays[layer]
        first, second = (
            VocabularyCounts.of_table(arrays["token_ids_X"], tokens_X, counts_XN)
            for tokens_X, counts_XN in zip(
                arrays["tokens_HX"], arrays["token_counts_HXN"], strict=True
            )
        )
        return first, second
