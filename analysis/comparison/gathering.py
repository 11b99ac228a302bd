"""One scan of all traces, a few layers at a time, so that few tables of documents exist at once.

Shape suffixes: C clusters of a trace, N experts of a layer, B replicates, S subjects in common,
P pairs of documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from threadpoolctl import threadpool_limits

from moe_probe.analysis.accumulators.counts import Counts
from moe_probe.analysis.accumulators.documents import (
    DocumentCounts,
    cluster_moments,
    cluster_tokens,
)
from moe_probe.analysis.accumulators.tables import counts_from_tables
from moe_probe.analysis.comparison.agreement import agree
from moe_probe.analysis.comparison.differences import difference_variance, divergence_noise
from moe_probe.analysis.comparison.documents import (
    Pairs,
    common_subjects,
    document_keys,
    draws,
    matched,
)
from moe_probe.analysis.comparison.sides import CompareSettings, Side
from moe_probe.analysis.comparison.sums import Gathered, PairLayer, PairSums, SideLayer, SideSums
from moe_probe.analysis.kernels import kernels_for
from moe_probe.analysis.quality.suite import Evidence
from moe_probe.analysis.reading.index import TraceIndex, subject_names
from moe_probe.analysis.reading.rules import Rule
from moe_probe.analysis.scan import Progress, chunks, default_threads, scan_layers
from moe_probe.analysis.statistics.clusters import replicate_sums


def gather(
    sides: Sequence[Side], settings: CompareSettings, *, progress: Progress | None = None
) -> Gathered:
    """Scan the traces and compare each with the first.

    Rows are read once for the loads, and once more where tokens are compared one by one.

    Raises:
        TraceError: a trace is damaged, or does not have what the rule needs.
    """
    scans = [_Scan(side, settings, number) for number, side in enumerate(sides)]
    reference, *others = scans
    pairs = [_pair(reference, other) for other in others]
    work = _schedule(scans, pairs, settings.threads or default_threads())
    total, done = sum(len(layers) for _, layers in work), 0
    # Layers are worked on side by side; libraries that start threads of their own get in the way.
    with (
        threadpool_limits(1),
        ThreadPoolExecutor(settings.threads or default_threads()) as pool,
    ):
        for layers in pool.map(lambda job: _take(job[0], job[1], pairs), work):
            done += len(layers)
            if progress:
                progress(done, total)
    for scan in scans:
        scan.finish()
    for pair, other in zip(pairs, others, strict=True):
        first, second = reference.sums.side, other.sums.side
        if pair.corresponds and first.source and second.source:
            labels = (first.label, second.label)
            pair.agreement = agree(
                first.source, second.source, settings.rule, labels=labels, threads=settings.threads
            )
    return Gathered(settings, reference.sums, pairs)


class _Scan:
    """One trace while it is scanned."""

    def __init__(self, side: Side, settings: CompareSettings, number: int) -> None:
        self.side = side
        source, rule = side.source, settings.rule
        if source is None:
            counts = counts_from_tables(side.trace, rule)
            index = TraceIndex.of(side.trace)
            self.evidence = Evidence(side.trace, None)
            documents = 0
        else:
            index = source.index
            counts = Counts(source.layers, rule, index)
            raw = counts if source.counts_alike(rule, Rule.RAW) else None
            self.evidence = Evidence(side.trace, source, raw)
            self.kernels = kernels_for(source.num_selections)
            self.tokens_C = cluster_tokens(source, rule)
            counted_C = (self.tokens_C > 0) & ~index.clusters.is_prefix_C
            documents = int(index.clusters.documents_C[counted_C].sum())
        self.clusters = index.clusters
        self.keys = document_keys(index.clusters, index.groups, number)
        self.weights_BC = draws(self.keys, settings.replicates, settings.seed)
        names = subject_names(counts.axes.groups)
        self.sums = SideSums(side, counts, names, index.clusters.group_C, documents)

    def tables(self, layers: Sequence[int]) -> DocumentCounts:
        """Read some layers, and return their selections by document."""
        source = self.side.source
        assert source is not None
        specs = {layer: source.layers[layer] for layer in layers}
        most = int(self.tokens_C.max(initial=0))
        documents = DocumentCounts(specs, self.sums.counts.rule, source.index, most=most)
        wanted = [*self.evidence.accumulators, self.sums.counts, documents]
        unique = list({id(accumulator): accumulator for accumulator in wanted}.values())
        scan_layers(source, unique, layers, self.kernels)
        for layer in layers:
            counts_CN = documents.arrays[layer]["counts_CN"]
            group_C = np.zeros(len(counts_CN), np.int64)
            self.sums.layers[layer] = SideLayer(
                cluster_moments(counts_CN, self.tokens_C, group_C, 1),
                replicate_sums(self.weights_BC, counts_CN),
            )
        return documents

    def finish(self) -> None:
        self.sums.checks = self.evidence.checks()
        if self.evidence.repeats is not None:
            pairs, equal = self.evidence.repeats.agreement()
            if pairs:
                self.sums.repeated = {layer: number / pairs for layer, number in equal.items()}


def _pair(reference: _Scan, other: _Scan) -> PairSums:
    documents = matched(reference.keys, other.keys)
    named = (
        zip(each.counts.axes.groups, each.subjects, strict=True)
        for each in (reference.sums, other.sums)
    )
    subjects = common_subjects(*map(list, named))
    corresponds = reference.side.corresponds(other.side)
    pair = PairSums(other.sums, corresponds, documents, subjects)
    if reference.side.source and other.side.source:
        counted_P = [
            (scan.tokens_C[chosen_P] > 0) & ~scan.clusters.is_prefix_C[chosen_P]
            for scan, chosen_P in ((reference, documents.first_P), (other, documents.second_P))
        ]
        number_P = reference.clusters.documents_C[documents.first_P]
        pair.paired_documents = int(number_P[counted_P[0] & counted_P[1]].sum())
    return pair


_Job = tuple[list[tuple[_Scan, int]], Sequence[int]]


def _schedule(scans: Sequence[_Scan], pairs: Sequence[PairSums], threads: int) -> list[_Job]:
    """Cut the layers into jobs; the reference's go with those of every trace that corresponds."""
    reference = scans[0]
    together = [(reference, -1)] if reference.side.source else []
    alone: list[_Scan] = []
    for number, (scan, pair) in enumerate(zip(scans[1:], pairs, strict=True)):
        if scan.side.source and pair.corresponds and together:
            together.append((scan, number))
        elif scan.side.source:
            alone.append(scan)
    jobs: list[_Job] = []
    for group in (together, *([(scan, -1)] for scan in alone)):
        if group:
            layers = list(group[0][0].side.trace.layers)
            jobs += [(group, some) for some in chunks(layers, threads)]
    return jobs


def _take(
    group: list[tuple[_Scan, int]], layers: Sequence[int], pairs: list[PairSums]
) -> Sequence[int]:
    """Scan some layers of several traces, and compare each with the first of them."""
    reference = group[0][0]
    first = reference.tables(layers)
    for scan, number in group[1:]:
        second = scan.tables(layers)
        for layer in layers:
            tables = [each.arrays[layer]["counts_CN"] for each in (first, second)]
            pairs[number].layers[layer] = _compared(reference, scan, tables, pairs[number])
    return layers


def _compared(
    reference: _Scan, other: _Scan, tables: list[np.ndarray], pair: PairSums
) -> PairLayer:
    variance_N, freedom = difference_variance(tables[0], tables[1], pair.documents)
    noise_S = np.zeros(len(pair.subjects))
    for place, (mine, theirs) in enumerate(pair.subjects):
        chosen = (reference.clusters.group_C == mine, other.clusters.group_C == theirs)
        some = [table[member_C] for table, member_C in zip(tables, chosen, strict=True)]
        within_N, _ = difference_variance(some[0], some[1], _within(pair.documents, *chosen))
        sums = [each.sum(axis=0, dtype=np.int64) for each in some]
        noise_S[place] = divergence_noise(within_N, sums[0], sums[1])
    return PairLayer(variance_N, freedom, noise_S)


def _within(documents: Pairs, first_C: np.ndarray, second_C: np.ndarray) -> Pairs:
    """Pairs of which both are chosen, numbered among the chosen."""
    both_P = first_C[documents.first_P] & second_C[documents.second_P]
    places = [np.cumsum(chosen_C) - 1 for chosen_C in (first_C, second_C)]
    return Pairs(places[0][documents.first_P[both_P]], places[1][documents.second_P[both_P]])
