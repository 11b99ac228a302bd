"""Random traces cut into shards, with one accumulator of every kind filled from each.

Shape suffixes: T tokens, K slots, N experts of a layer, S slots of all layers, R scalars of all.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from moe_probe.analysis.accumulators.arrivals import ArrivalPairs
from moe_probe.analysis.accumulators.base import LayerAccumulator, spread
from moe_probe.analysis.accumulators.counts import Counts
from moe_probe.analysis.accumulators.document_sums import DocumentMoments, Replicates
from moe_probe.analysis.accumulators.documents import DocumentCounts
from moe_probe.analysis.accumulators.fanout import DeviceFanout
from moe_probe.analysis.accumulators.gaps import Gaps
from moe_probe.analysis.accumulators.locality import BatchStats, Overlaps
from moe_probe.analysis.accumulators.pass_experts import PassExperts
from moe_probe.analysis.accumulators.pass_loads import PassLoads
from moe_probe.analysis.accumulators.repeats import Repeats
from moe_probe.analysis.accumulators.rows import RowFaults
from moe_probe.analysis.accumulators.segment_positions import SegmentPositions
from moe_probe.analysis.accumulators.set_flows import FlowHits, SetFlows
from moe_probe.analysis.accumulators.structure import (
    FlowCounts,
    PairCounts,
    PositionCounts,
    SlotCounts,
)
from moe_probe.analysis.accumulators.vocabulary import TokenCounts
from moe_probe.analysis.accumulators.weight_faults import WeightFaults
from moe_probe.analysis.accumulators.weights import Confidence, WeightSums
from moe_probe.analysis.accumulators.windows import WindowCounts
from moe_probe.analysis.accumulators.working_sets import WorkingSets
from moe_probe.analysis.kernels import plain
from moe_probe.analysis.reading.orders import Order
from moe_probe.analysis.reading.passes import PassTable
from moe_probe.analysis.reading.rules import Rule
from moe_probe.analysis.reading.source import Source
from moe_probe.analysis.scan import scan
from moe_probe.trace import LayerSpec, TraceWriter, open_trace
from moe_probe.trace import Sequence as Row

SMALL = [
    LayerSpec(layer=1, num_experts=6, top_k=2, scalars=True),
    LayerSpec(layer=4, num_experts=5, top_k=1),
    LayerSpec(layer=7, num_experts=9, top_k=3, empty_slots=True, scalars=True),
]
LARGE = [
    LayerSpec(layer=0, num_experts=260, top_k=3),
    LayerSpec(layer=3, num_experts=70, top_k=1, empty_slots=True),
]
VOCABULARY = 4
MOST = 10_000
IN_ORDER = ("arrivals", "batches", "windows")
"""Kinds that join in order of recording only."""
ONCE = ("arrivals", "gaps", "passes", "windows")
"""Kinds that refuse rows counted more than once."""


def made(source: Source, rule: Rule, *, before: int = 0) -> list[LayerAccumulator]:
    """Make an empty accumulator of every kind that a trace of ids can fill."""
    facts: Any = (source.layers, rule, source.index)
    return [
        Counts(*facts),
        SlotCounts(*facts),
        PairCounts(*facts),
        FlowCounts(*facts),
        PositionCounts(*facts),
        SegmentPositions(*facts),
        Overlaps(*facts, lags=(1, 3), other_tokens=True),
        DeviceFanout(*facts, devices=(1, 2, 5)),
        SetFlows(*facts),
        TokenCounts(*facts, token_ids_X=np.arange(VOCABULARY), most=MOST),
        WorkingSets(*facts, windows=(1, 3, 7)),
        DocumentCounts(*facts, most=400),
        DocumentMoments(*facts, most=400),
        Replicates(*facts, replicates=7),
        BatchStats(*facts, sizes=(5, 20, 60), before=before),
        Gaps(*facts, most=400, windows=(2, 6)),
        WindowCounts(*facts, window=16, before=before),
        ArrivalPairs(*facts, before=before),
    ]


def filled(
    source: Source, rule: Rule, flows: SetFlows, table: PassTable, *, before: int = 0
) -> dict[str, Any]:
    """Scan a trace into what it and the rule allow, by kind.

    Args:
        source: The shard.
        rule: Of all accumulators.
        flows: Those of the whole.
        table: The passes of the whole.
        before: Counted tokens before the shard.
    """
    found: list[Any] = made(source, rule, before=before)
    facts: Any = (source.layers, rule, source.index)
    found += [WeightSums(*facts), Confidence(*facts), FlowHits(flows, source.index)]
    if rule is not Rule.RAW or not source.has_repeated_rows:
        found.append(PassExperts(*facts, table=PassTable.of(source, rule)))
        found.append(PassLoads(*facts, table=table, devices=(1, 3, 5)))
    else:
        found = [accumulator for accumulator in found if accumulator.kind not in ONCE]
    by_kind = {accumulator.kind: accumulator for accumulator in found}
    by_kind |= {
        "rows": RowFaults(source.layers),
        "weight faults": WeightFaults(source.layers, descending=True),
        "repeats": Repeats(source.trace.sequences, source.layers),
    }
    scan(source, list(by_kind.values()), kernels=plain, threads=1)
    return by_kind


def assert_same(found: Any, whole: Any, counts: Counts) -> None:
    """Both are of the same tokens, whatever order merging brought their tables' rows to."""
    if isinstance(whole, Gaps):
        _assert_same_runs(found, whole, counts)
    elif isinstance(whole, LayerAccumulator):
        if isinstance(whole, DocumentMoments):
            found, whole = (_with_moments(side) for side in (found, whole))
        for layer, arrays in whole.arrays.items():
            mine = spread(found.arrays[layer], found.axes, whole.axes)
            for name, array in arrays.items():
                np.testing.assert_allclose(
                    mine[name],
                    array,
                    rtol=1e-12 if array.dtype.kind == "f" else 0,
                    err_msg=f"{whole.kind} {layer} {name}",
                )
    elif isinstance(whole, Repeats):
        assert found.agreement() == whole.agreement()
    else:
        assert (found.rows_L.tolist(), found.by_layer()) == (
            whole.rows_L.tolist(),
            whole.by_layer(),
        )


def _with_moments(accumulator: DocumentMoments) -> Any:
    shown = copy.copy(accumulator)
    shown.arrays = {layer: vars(accumulator.moments(layer)) for layer in accumulator.layers}
    return shown


def _assert_same_runs(found: Gaps, whole: Gaps, counts: Counts) -> None:
    assert found.windows == whole.windows
    in_any_order = found.axes == whole.axes
    names = ("canonical", "execution", "shuffle-docs:2", "request-local")
    for layer in whole.layers:
        counts_N = counts.layer(layer).counts_N
        # Orders of the documents need the same documents at the same places.
        for name in names if in_any_order else names[-1:]:
            order = Order.parse(name)
            runs, expected = (side.runs(layer, order, counts_N, plain) for side in (found, whole))
            for field_name, value in vars(expected).items():
                is_last = not in_any_order and field_name == "current_N"
                same = np.array_equal(getattr(runs, field_name), value)
                assert same or is_last, (layer, name, field_name)
        if in_any_order:
            orders = [Order("shuffle-docs", seed) for seed in range(2)]
            both = (side.longest(layer, orders, counts_N, plain) for side in (found, whole))
            for mine, theirs in zip(*both, strict=True):
                assert mine.tolist() == theirs.tolist()


@dataclass
class Stream:
    """A trace of many parts, and what was scanned of it."""

    source: Source
    scanned: dict[tuple[Rule, tuple[int, ...], int], dict[str, Any]] = field(default_factory=dict)
    fitted: dict[Rule, SetFlows] = field(default_factory=dict)

    @classmethod
    def of(cls, path: Path, seed: int, documents: int, layers: list[LayerSpec]) -> Stream:
        write(path, seed, range(documents), layers=layers, prefix=3)
        source = Source(open_trace(path))
        assert source.template, "shards know the template of the whole"
        return cls(source)

    @property
    def parts(self) -> range:
        return range(len(self.source.parts))

    def flows(self, rule: Rule) -> SetFlows:
        """Scan the whole for what foresees its next layers."""
        if rule not in self.fitted:
            self.fitted[rule] = SetFlows(self.source.layers, rule, self.source.index)
            scan(self.source, [self.fitted[rule]], kernels=plain, threads=1)
        return self.fitted[rule]

    def filled(self, rule: Rule, parts: Sequence[int], *, first: int = 0) -> dict[str, Any]:
        """Scan some parts as a shard of their own, once; `first` parts come before."""
        key = rule, tuple(parts), first
        if key not in self.scanned:
            shard = copy.copy(self.source)
            shard.parts = [self.source.parts[number] for number in parts]
            shard.__dict__.pop("has_repeated_rows", None)
            earlier = self.source.parts[:first]
            before = sum(int(self.source.pieces(p, rule).length_P.sum()) for p in earlier)
            whole = self.flows(rule), PassTable.of(self.source, rule)
            self.scanned[key] = filled(shard, rule, *whole, before=before)
        return copy.deepcopy(self.scanned[key])

    def documents(self, rule: Rule) -> list[list[int]]:
        """Neighbouring parts that have no counted document in common with others."""
        clusters = [
            set(self.source.pieces(part, rule).cluster_P.tolist()) for part in self.source.parts
        ]
        blocks: list[list[int]] = []
        for number in self.parts:
            before = set().union(*clusters[:number])
            if before.isdisjoint(set().union(*clusters[number:])):
                blocks.append([])
            blocks[-1].append(number)
        return blocks


def write(
    path: Path, seed: int, documents: Sequence[int], *, layers: list[LayerSpec], prefix: int = 0
) -> None:
    """Write ragged documents of two subjects, each asked by several sequences, and an empty one.

    A document is the same in every trace that has it, but for the place of its prefix: `prefix`
    tokens that a subject's documents share, which the first of them stores.
    """
    owners: dict[str, int] = {}
    facts: Any = {"capture": "weights", "run": {"start": "0"}, "segment_tokens": 24}
    with TraceWriter(path, layers=layers, **facts) as writer:
        for number in documents:
            rng = np.random.default_rng([seed, number])
            subject = ("law", "art")[number % 3 // 2]
            for row in _rows(rng, number, subject, prefix, owners, writer):
                _write(rng, writer, layers, row)
        nothing: Any = {"num_tokens": 0, "task": "t", "subject": "none", "doc_id": 99}
        writer.write(Row(sequence_id=writer.next_sequence_id(), **nothing))


def _rows(
    rng: np.random.Generator,
    number: int,
    subject: str,
    prefix: int,
    owners: dict[str, int],
    writer: TraceWriter,
) -> Iterator[Row]:
    """One prompt, its other choices, which share what comes before, and perhaps a second run."""
    question = prefix + int(rng.integers(1, 12))
    cue = question + int(rng.integers(0, 3))
    owner, first = owners.get(subject, -1), -1
    common: dict[str, Any] = {
        "task": "t",
        "subject": subject,
        "doc_id": number,
        "prefix_end": prefix,
        "question_end": question,
        "cue_end": cue,
    }
    for choice in range(int(rng.integers(1, 5))):
        stop = cue + int(rng.integers(1, 4))
        begin = cue if choice else prefix if owner >= 0 else 0
        row = Row(
            sequence_id=writer.next_sequence_id(),
            num_tokens=stop + int(rng.integers(0, 5)),
            choice_end=stop,
            prefix_id=(first if choice else owner) if begin else -1,
            prefix_tokens=begin,
            new_from=begin,
            multiplicity=int(rng.integers(1, 3)) if prefix else 1,
            prompt_hash="" if choice else f"{number}",
            **common,
        )
        first = row.sequence_id if first < 0 else first
        yield row
    if prefix:
        owners.setdefault(subject, first)
    if rng.random() < 0.4:
        yield Row(
            sequence_id=writer.next_sequence_id(),
            num_tokens=cue,
            prefix_id=owners.get(subject, -1),
            prefix_tokens=prefix,
            new_from=cue,
            prompt_hash=f"{number}",
            rank=1,
            **common,
        )


def _write(
    rng: np.random.Generator, writer: TraceWriter, layers: list[LayerSpec], row: Row
) -> None:
    tokens = row.num_tokens - row.prefix_tokens
    ids, weights, scalars = [], [], []
    for spec in layers:
        chance_TN = rng.random((tokens, spec.num_experts))
        chance_TN **= 1 + np.arange(spec.num_experts) % 5
        chance_TN[:, 2] = -1
        ids_TK = np.argsort(-chance_TN, axis=1)[:, : spec.top_k]
        weights_TK = rng.random((tokens, spec.top_k)).astype(np.float16)
        weights_TK[rng.random(tokens) < 0.1] = 0
        if spec.empty_slots:
            # Filled slots come first; a token may have none.
            is_empty_TK = np.arange(spec.top_k) >= rng.integers(0, spec.top_k + 1, (tokens, 1))
            ids_TK[is_empty_TK], weights_TK[is_empty_TK] = -1, 0
        ids.append(ids_TK)
        weights.append(weights_TK)
        if spec.scalars:
            scalars.append(rng.uniform(-1, 3, (tokens, 3)).astype(np.float16))
    writer.write(
        row,
        writer.layout.pack(ids),
        token_id_T=rng.integers(0, VOCABULARY, tokens).astype(np.int32),
        weights_TS=np.concatenate(weights, axis=1),
        scalars_TR=np.concatenate(scalars, axis=1) if scalars else None,
        forward_pass_T=row.doc_id * 2 + np.arange(tokens) // 3,
    )
