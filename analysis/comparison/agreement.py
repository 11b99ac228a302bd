"""Sums over aligned tokens: how often two runs select the same experts, and where not.

Parts of the reference are read one after the other, each with the parts of the other trace that
have its tokens. Where both ran in about the same order, that is each part about once; only a few
are in memory at a time.

Shape suffixes: L layers, T aligned tokens of two parts, K slots, N experts of a layer, O octaves of
positions, C clusters of the reference, H bins of margins; 2 is equal, different or both traces.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from moe_probe.analysis.comparison.agreement_sums import OCTAVES, AgreementSums, nothing
from moe_probe.analysis.comparison.alignment import Alignment, Runs
from moe_probe.analysis.comparison.selections import (
    compare_sets,
    first_filled,
    rank_overlap,
    weight_difference,
)
from moe_probe.analysis.metrics.confidence import histogram
from moe_probe.analysis.reading.pieces import Pieces
from moe_probe.analysis.reading.rules import Rule
from moe_probe.analysis.reading.source import Source
from moe_probe.analysis.scan import default_threads
from moe_probe.trace import Block, Capture, LayerSpec

_KEPT_PARTS = 3
_MARGIN = 2  # among ROUTER_SCALARS


@dataclass(frozen=True)
class _Tokens:
    """Aligned tokens of two parts."""

    row_T: np.ndarray
    other_row_T: np.ndarray
    weight_T: np.ndarray
    cluster_T: np.ndarray
    octave_T: np.ndarray

    @classmethod
    def of(cls, runs: Runs, pieces: Pieces) -> _Tokens:
        length_X = runs.length_X
        begins_X = np.cumsum(length_X) - length_X
        within_T = np.arange(int(length_X.sum())) - np.repeat(begins_X, length_X)
        position_T = np.repeat(runs.position_X, length_X) + within_T
        return cls(
            np.repeat(runs.row_X, length_X) + within_T,
            np.repeat(runs.other_row_X, length_X) + within_T,
            np.repeat(pieces.weight_P[runs.piece_X].astype(np.int64), length_X),
            np.repeat(pieces.cluster_P[runs.piece_X], length_X),
            # The number of bits of a position: exact, unlike a logarithm.
            np.frexp(position_T.astype(np.float64))[1],
        )


@dataclass
class _Parts:
    """The other trace's parts that were read last."""

    source: Source
    layers: list[int]
    weights: bool
    kept: OrderedDict[int, Block] = field(default_factory=OrderedDict)

    def read(self, number: int) -> Block:
        if number not in self.kept:
            while len(self.kept) >= _KEPT_PARTS:
                self.kept.popitem(last=False)
            path = self.source.parts[number].path
            block = self.source.trace.read_layers(path, self.layers, weights=self.weights)
            self.kept[number] = block
        self.kept.move_to_end(number)
        return self.kept[number]


def agree(
    first: Source,
    second: Source,
    rule: Rule,
    *,
    labels: tuple[str, str] = ("first", "second"),
    threads: int | None = None,
) -> AgreementSums | None:
    """Compare two traces token by token, as far as they ran the same text.

    Args:
        first: The reference, whose tokens the rule counts.
        second: The other trace, with the same layers and experts.
        rule: How often each token counts.
        labels: Names of both.
        threads: Layers compared at a time; all processors if None.

    Returns:
        The sums; None where no sequences begin with the same tokens.
    """
    alignment = Alignment(first, second)
    if not alignment:
        return None
    work = _Comparison(first, second, labels)
    others = _Parts(second, work.layers, work.reads_weights[1])
    with ThreadPoolExecutor(threads or default_threads()) as pool:
        for part in first.parts:
            pieces = first.pieces(part, rule)
            runs = alignment.runs(part, pieces)
            if not len(runs.piece_X):
                continue
            block = first.trace.read_layers(part.path, work.layers, weights=work.reads_weights[0])
            for number in np.unique(runs.part_X).tolist():
                tokens = _Tokens.of(runs.of_part(number), pieces)
                blocks = (block, others.read(number))
                rows = list(pool.map(partial(work.add, blocks, tokens), work.layers))
                work.add_depths(np.stack(rows), tokens)
    return work.sums if work.sums.tokens else None


class _Comparison:
    """Adds one layer of two parts at a time."""

    def __init__(self, first: Source, second: Source, labels: tuple[str, str]) -> None:
        self.specs: tuple[Mapping[int, LayerSpec], ...] = (first.layers, second.layers)
        self.layers = list(first.layers)
        kept = [source.trace.capture is Capture.WEIGHTS for source in (first, second)]
        scalars = [
            has and any(spec.scalars for spec in source.layers.values())
            for has, source in zip(kept, (first, second), strict=True)
        ]
        self.margin_side = scalars.index(True) if any(scalars) else -1
        self.reads_weights = [all(kept) or self.margin_side == side for side in (0, 1)]
        orders = {source.trace.run.get("slot_order", "unknown") for source in (first, second)}
        clusters = len(first.index.clusters)
        self.sums = AgreementSums(
            layers={layer: nothing(spec, clusters) for layer, spec in first.layers.items()},
            tokens_C=np.zeros(clusters, np.int64),
            tokens_O=np.zeros(OCTAVES, np.int64),
            first_L=np.zeros(len(self.layers) + 1, np.int64),
            number_L=np.zeros(len(self.layers) + 1, np.int64),
            has_ranks=len(orders) == 1 and "unknown" not in orders,
            has_weights=all(kept),
            margins_of=labels[self.margin_side] if self.margin_side >= 0 else "",
        )

    def add(self, blocks: tuple[Block, Block], tokens: _Tokens, layer: int) -> np.ndarray:
        """Compare one layer; return which tokens differ: bool [T]."""
        sums, spec = self.sums.layers[layer], self.specs[0][layer]
        rows = (tokens.row_T, tokens.other_row_T)
        ids = [block.topk_ids(layer)[row_T] for block, row_T in zip(blocks, rows, strict=True)]
        found = compare_sets(ids[0], ids[1], spec.num_experts)
        weight_T = tokens.weight_T
        overlap_T, equal_T = found.overlap_T * weight_T, found.equal_T * weight_T
        sums.overlap_C += np.bincount(tokens.cluster_T, overlap_T, len(sums.overlap_C))
        sums.equal_C += np.bincount(tokens.cluster_T, equal_T, len(sums.equal_C))
        for row_O, values_T in zip(sums.octaves_2O, (overlap_T, equal_T), strict=True):
            row_O += np.bincount(tokens.octave_T, values_T, OCTAVES)
        for row_N, ids_TK in zip(sums.counts_2N, ids, strict=True):
            flat = np.minimum(ids_TK.astype(np.intp), spec.num_experts).ravel()
            times = np.repeat(weight_T, ids_TK.shape[1])
            row_N += np.bincount(flat, times, spec.num_experts + 1)[: spec.num_experts].astype(int)
        sums.lost_K += weight_T @ found.lost_TK
        sums.size += float(weight_T @ found.size_T)
        sums.nothing += int(weight_T @ (found.depth_T == 0))
        if self.sums.has_ranks:
            filled_T, is_equal_T = first_filled(ids[0], ids[1], spec.num_experts)
            sums.first_choice += int(weight_T @ is_equal_T)
            sums.first_filled_3 += np.bincount(filled_T, weight_T, 3).astype(np.int64)
            sums.rank_overlap += float(weight_T @ rank_overlap(found))
        if self.sums.has_weights:
            gates = [b.topk_weights(layer)[row_T] for b, row_T in zip(blocks, rows, strict=True)]
            gates = [
                np.where(ids_TK < spec.num_experts, weights_TK, 0)
                for ids_TK, weights_TK in zip(ids, gates, strict=True)
            ]
            moved_T = weight_difference(found.place_TK, gates[0], gates[1])
            known_T = np.isfinite(moved_T)
            sums.weight_difference += float(weight_T[known_T] @ moved_T[known_T])
            sums.weighed += int(weight_T[known_T].sum())
        self._add_margins(layer, blocks, rows, found.equal_T, weight_T)
        return ~found.equal_T

    def _add_margins(
        self,
        layer: int,
        blocks: tuple[Block, Block],
        rows: tuple[np.ndarray, np.ndarray],
        equal_T: np.ndarray,
        weight_T: np.ndarray,
    ) -> None:
        side = self.margin_side
        if side < 0 or not self.specs[side][layer].scalars:
            return
        spec = self.specs[side][layer]
        scalars_T3 = blocks[side].router_scalars(layer)[rows[side]]
        margin_T = scalars_T3[:, _MARGIN].astype(np.float32)
        for row_H, chosen_T in zip(
            self.sums.layers[layer].margins_2H, (equal_T, ~equal_T), strict=True
        ):
            facts = (weight_T[chosen_T], spec.num_experts, spec.top_k)
            row_H += histogram("margin", margin_T[chosen_T], *facts)

    def add_depths(self, differs_LT: np.ndarray, tokens: _Tokens) -> None:
        """Add what needs all layers of a token at once."""
        sums, weight_T = self.sums, tokens.weight_T
        depth = len(differs_LT)
        first_T = np.where(differs_LT.any(axis=0), differs_LT.argmax(axis=0), depth)
        for row_L, place_T in ((sums.first_L, first_T), (sums.number_L, differs_LT.sum(axis=0))):
            row_L += np.bincount(place_T, weight_T, depth + 1).astype(np.int64)
        clusters = len(sums.tokens_C)
        sums.tokens_C += np.bincount(tokens.cluster_T, weight_T, clusters).astype(np.int64)
        sums.tokens_O += np.bincount(tokens.octave_T, weight_T, OCTAVES).astype(np.int64)
