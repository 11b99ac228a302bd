"""Rows of a trace in memory: zero-copy arrays on the decoded columns of one part.

Shape suffixes: T tokens, K slots.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pyarrow as pa

from moe_probe.trace.schema import ROUTER_SCALARS, LayerSpec
from moe_probe.trace.tables import fixed_binary, layer_arrays


@dataclass(frozen=True)
class Block:
    """One part's tokens, or some of its layers; arrays are views on the decoded file."""

    table: pa.Table
    layers: dict[int, LayerSpec]
    _ids: dict[int, np.ndarray] = field(default_factory=dict, init=False, repr=False)

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @cached_property
    def sequence_id_T(self) -> np.ndarray:
        return np.asarray(self.table["sequence_id"].to_numpy())

    @cached_property
    def position_T(self) -> np.ndarray:
        return np.asarray(self.table["position"].to_numpy())

    @cached_property
    def token_id_T(self) -> np.ndarray:
        """Vocabulary ids; -1 where they were not stored."""
        return np.asarray(self.table["token_id"].to_numpy())

    @cached_property
    def forward_pass_T(self) -> np.ndarray:
        """Forward pass that ran the row, int32: numbered from 0 by each writer, -1 for unknown."""
        return np.asarray(self.table["forward_pass"].to_numpy())

    def topk_ids(self, layer: int) -> np.ndarray:
        """Expert ids [T, K] of one layer, in the slot order run.json names, as they were stored.

        An empty slot holds the layer's `none_id`. Other ids are below `num_experts` in every
        trace that TraceWriter made from valid ids; in a foreign one they may be anything.
        """
        if layer not in self._ids:
            self._ids[layer] = layer_arrays(self.table, self.layers[layer], weights=False)[0]
        return self._ids[layer]

    def topk_weights(self, layer: int) -> np.ndarray:
        """Gate weights float16 [T, K] of one layer, slot by slot beside the ids."""
        weights_TK = layer_arrays(self.table, self.layers[layer], weights=True)[1]
        assert weights_TK is not None
        return weights_TK

    def router_scalars(self, layer: int) -> np.ndarray:
        """ROUTER_SCALARS float16 [T, 3] of one layer whose spec has `scalars`."""
        column, float16 = self.layers[layer].scalars_column, np.dtype(np.float16)
        return fixed_binary(self.table, column, float16, len(ROUTER_SCALARS))


def typed(block: Block, *, weights: bool) -> pa.Table:
    """Return the block with typed columns: fixed-size lists instead of bytes."""
    table = block.table
    for spec in block.layers.values():
        table = _replace(table, spec.ids_column, block.topk_ids(spec.layer))
        if weights:
            weights_TK = block.topk_weights(spec.layer).astype(np.float32)
            table = _replace(table, spec.weights_column, weights_TK)
        if weights and spec.scalars:
            scalars_T3 = block.router_scalars(spec.layer).astype(np.float32)
            table = _replace(table, spec.scalars_column, scalars_T3)
    return table


def _replace(table: pa.Table, column: str, values_TK: np.ndarray) -> pa.Table:
    flat = pa.array(values_TK.ravel())
    lists = pa.FixedSizeListArray.from_arrays(flat, values_TK.shape[1])
    return table.set_column(table.schema.get_field_index(column), column, lists)
