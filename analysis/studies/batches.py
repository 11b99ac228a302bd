"""D18 of a trace: whether imbalance vanishes in large and in mixed batches.

Shape suffixes: T counted rows of a part, K slots, N experts of a layer, C clusters (documents),
X streams of tokens, V batches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd

from moe_probe.analysis.accumulators.counted import Counted
from moe_probe.analysis.accumulators.counts import LayerCounts
from moe_probe.analysis.accumulators.documents import cluster_tokens
from moe_probe.analysis.accumulators.locality import BATCH_SIZES
from moe_probe.analysis.accumulators.stream import refuse_repeats
from moe_probe.analysis.metrics.grouping import sums_by_label
from moe_probe.analysis.metrics.imbalance import cv, max_vio
from moe_probe.analysis.reading.rules import Rule
from moe_probe.analysis.reading.source import Rows, Source
from moe_probe.analysis.scan import Progress
from moe_probe.analysis.statistics.nulls import expected_indices
from moe_probe.analysis.studies.scanning import (
    AnyTrace,
    by_layers,
    facts_of,
    is_number,
    source_of,
    stacked,
)
from moe_probe.trace import LayerSpec

_SEQUENCE = "sequence"
_COLUMNS = (
    *("batching", "tokens_per_batch", "batches", "max_vio", "max_vio_sd", "cv"),
    *("max_vio_null", "cv_null"),
)
_GRID = 24
"""Numbers of selections at which the null is taken, and interpolated in between."""


def batch_balance(
    trace: AnyTrace,
    *,
    rule: Rule | str | None = None,
    sizes: Sequence[int] = BATCH_SIZES,
    seed: int = 0,
    threads: int | None = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Tabulate imbalance against the size of batches of like and of mixed text (D18).

    Even in large mixed batches and uneven in small ones, or in those of one subject, is
    specialisation; uneven in all of them, on text like that of training, is failed balancing.

    Args:
        trace: The trace, or where it lies.
        rule: Which tokens count, each at most once; the trace's default rule if None.
        sizes: Tokens per batch, ascending; each a multiple of the first.
        seed: Of the order of the documents.
        threads: Threads of the scan; all processors if None.
        progress: Called with the number of layers done, and of all.

    Returns:
        One row per layer, way to form batches, and size. Rests that fill no batch are left out.
        layer
        batching  what a batch is of: one "sequence", all of its counted tokens; one "document", of
            which a shared prefix is one, and of more than 16,384 neighbours are one; one "subject",
            its documents in canonical order; "random documents"; or "all" tokens
        tokens_per_batch  of sequences the mean
        batches  those in which anything was selected
        max_vio  mean over batches of max r - 1, in [0, N/k - 1]; null without batches
        max_vio_sd  its sd over batches (ddof 1); null with fewer than two
        cv  mean over batches of the coefficient of variation of the loads
        max_vio_null, cv_null  expectations for as many selections, by tokens that choose k of N
            uniformly, the mean k where tokens differ; good to 2 % once an expert is expected 50
            times in a batch
        Sources: Loss-Free Balancing (2408.15664), MaxVio_batch; global batches (2501.11873).

    Raises:
        TraceError: the trace has no per-token rows, or is damaged.
        UsageError: the rule counts stored rows several times.
        ValueError: there is no such rule, or there are no such sizes.
    """
    if not sizes or not all(map(is_number, sizes)) or any(size % sizes[0] for size in sizes):
        raise ValueError(f"batches of {list(sizes)} tokens: each a multiple of the first, above 0")
    source = source_of(trace)
    _, chosen, _ = facts_of(source, rule)
    plan = _Plan.of(source, chosen, sizes[0], seed)

    def table(layer: int, counts: Mapping[str, np.ndarray]) -> pd.DataFrame:
        spec, of_sequences_VN = source.layers[layer], counts[_SEQUENCE]
        tokens = int(plan.tokens_V.sum())
        total = LayerCounts(spec, of_sequences_VN.sum(axis=0, dtype=np.int64), tokens)

        def row(batching: str, batches_VN: np.ndarray, tokens_V: np.ndarray) -> dict[str, Any]:
            return {"batching": batching, **_balance(batches_VN, tokens_V, total)}

        rows = [row(_SEQUENCE, of_sequences_VN, plan.tokens_V)]
        for name, stream in plan.streams.items():
            for size in sizes:
                label_V, number = stream.joined(size // sizes[0])
                batches_VN = sums_by_label(
                    counts[name][label_V >= 0], label_V[label_V >= 0], number
                )
                rows.append(row(name, batches_VN, np.full(number, size)))
        rows.append(row("all", total.counts_N[None], np.array([tokens])))
        return pd.DataFrame(rows)[list(_COLUMNS)]

    found = by_layers(source, lambda layers: (_Batches(layers, plan),), threads, progress)
    return stacked(
        ((layer, table(layer, batches.counts[layer])) for layer, (batches,) in found), source, rule
    )


@dataclass(frozen=True)
class _Streams:
    """Tokens in a row, in one or several streams, each cut into batches of the smallest size."""

    stream_C: np.ndarray
    begin_C: np.ndarray
    """Where each document begins in its stream."""
    batches_X: np.ndarray
    """Full batches of each stream."""
    size: int

    @classmethod
    def of(cls, stream_C: np.ndarray, order_C: np.ndarray, tokens_C: np.ndarray, size: int) -> Any:
        """Put documents in a row, in the order given, in which each stream stays together."""
        before_C = np.cumsum(tokens_C[order_C]) - tokens_C[order_C]
        streams = int(stream_C.max(initial=-1)) + 1
        tokens_X = np.bincount(stream_C, tokens_C, streams).astype(np.int64)
        begin_C = np.empty_like(tokens_C)
        begin_C[order_C] = before_C
        first_X = np.full(streams, tokens_C.sum())
        np.minimum.at(first_X, stream_C, begin_C)
        return cls(stream_C, begin_C - first_X[stream_C], tokens_X // size, size)

    def labels(self, cluster_T: np.ndarray, number_T: np.ndarray) -> np.ndarray:
        """The batch of the document's n-th token, -1 for those of a rest: int64 [T]."""
        stream_T = self.stream_C[cluster_T]
        batch_T = (self.begin_C[cluster_T] + number_T) // self.size
        first_X = self.batches_X.cumsum() - self.batches_X
        return np.where(batch_T < self.batches_X[stream_T], first_X[stream_T] + batch_T, -1)

    def joined(self, times: int) -> tuple[np.ndarray, int]:
        """Which batch of so many times the size each batch is in, -1 for a rest; their number."""
        larger_X = self.batches_X // times
        stream_V = np.repeat(np.arange(len(larger_X)), self.batches_X)
        place_V = np.arange(len(stream_V)) - (self.batches_X.cumsum() - self.batches_X)[stream_V]
        label_V = (larger_X.cumsum() - larger_X)[stream_V] + place_V // times
        return np.where(place_V // times < larger_X[stream_V], label_V, -1), int(larger_X.sum())


@dataclass(frozen=True)
class _Plan:
    """Where every counted token is in every kind of batch."""

    rule: Rule
    streams: dict[str, _Streams]
    number_T: dict[Path, np.ndarray]
    """By part, which token of its document each counted row is."""
    tokens_V: np.ndarray
    """Counted tokens of each sequence."""

    @classmethod
    def of(cls, source: Source, rule: Rule, size: int, seed: int) -> _Plan:
        tokens_C, clusters = cluster_tokens(source, rule), source.index.clusters
        canonical_C = np.arange(len(tokens_C))
        random_C = np.random.default_rng(seed).permutation(len(tokens_C))
        kinds = {
            "document": (canonical_C, canonical_C),
            "subject": (clusters.group_C, canonical_C),
            "random documents": (np.zeros(len(tokens_C), np.int64), random_C),
        }
        seen_C, number_T = np.zeros(len(tokens_C), np.int64), {}
        tokens_V = np.zeros(len(source.index.sequence_id_S), np.int64)
        for part in source.parts:
            counted = Counted.of(source.pieces(part, rule))
            refuse_repeats(counted.weight_T, "Batches", rule)
            earlier_T = pd.Series(counted.cluster_T).groupby(counted.cluster_T).cumcount()
            number_T[part.path] = seen_C[counted.cluster_T] + earlier_T.to_numpy()
            seen_C += np.bincount(counted.cluster_T, minlength=len(seen_C))
            sequence_T = part.stretches.tokens()[0][counted.row_T]
            tokens_V += np.bincount(sequence_T, minlength=len(tokens_V))
        streams = {n: _Streams.of(*kind, tokens_C, size) for n, kind in kinds.items()}
        return cls(rule, streams, number_T, tokens_V)


class _Batches:
    """Selections of every batch: by layer and kind of batch, uint32 [V, N]."""

    weights = lookahead = False

    def __init__(self, layers: Mapping[int, LayerSpec], plan: _Plan) -> None:
        self.layers, self._plan = layers, plan
        numbers = {name: int(s.batches_X.sum()) for name, s in plan.streams.items()}
        numbers[_SEQUENCE] = len(plan.tokens_V)
        self.counts = {
            layer: {n: np.zeros((v, spec.num_experts), np.uint32) for n, v in numbers.items()}
            for layer, spec in layers.items()
        }

    def add(self, rows: Rows, layer: int, kernels: ModuleType) -> None:
        counted = Counted.of(rows.pieces(self._plan.rule))
        ids_TK = rows.topk_ids(layer)[counted.row_T]
        number_T, experts = self._plan.number_T[rows.part.path], self.layers[layer].num_experts
        labels = {_SEQUENCE: rows.part.stretches.tokens()[0][counted.row_T]}
        for name, stream in self._plan.streams.items():
            labels[name] = stream.labels(counted.cluster_T, number_T)
        for name, label_T in labels.items():
            flat_TK = label_T[:, None] * experts + ids_TK
            chosen_TK = (ids_TK < experts) & (label_T >= 0)[:, None]
            np.add.at(self.counts[layer][name].reshape(-1), flat_TK[chosen_TK], np.uint32(1))


def _balance(batches_VN: np.ndarray, tokens_V: np.ndarray, total: LayerCounts) -> dict[str, Any]:
    used_V = batches_VN.any(axis=1)
    batches_VN, tokens_V = batches_VN[used_V], tokens_V[used_V]
    vio_V, number = max_vio(batches_VN), len(batches_VN)
    null_V2 = _nulls(batches_VN.sum(axis=1, dtype=np.int64), total)
    names = ("tokens_per_batch", "max_vio", "cv", "max_vio_null", "cv_null")
    values_V = (tokens_V, vio_V, cv(batches_VN), *null_V2.T)
    means = [float(value_V.mean()) if number else np.nan for value_V in values_V]
    found = dict(zip(names, means, strict=True))
    spread = float(vio_V.std(ddof=1)) if number > 1 else np.nan
    return found | {"batches": number, "max_vio_sd": spread}


def _nulls(slots_V: np.ndarray, total: LayerCounts) -> np.ndarray:
    """MaxVio and CV of fair batches with as many selections: float64 [V, 2]."""
    if not len(slots_V):
        return np.empty((0, 2))
    top_k, experts = total.set_sizes().null_k, total.spec.num_experts
    grid = np.unique(slots_V)
    if len(grid) > _GRID:
        wanted = np.searchsorted(grid, np.geomspace(grid[0], grid[-1], _GRID))
        grid = grid[np.unique(wanted.clip(max=len(grid) - 1))]
    found = [expected_indices(experts, top_k, slots / top_k) for slots in grid.tolist()]
    log_V, log_grid = np.log(slots_V), np.log(grid)
    columns = ([null.max_vio for null in found], [null.cv for null in found])
    return np.stack([np.interp(log_V, log_grid, values) for values in columns], axis=1)
