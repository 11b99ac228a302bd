"""One layer after the scan: its sums, and what its table of documents says before it is dropped.

Shape suffixes: C clusters, D documents, S groups (task, subject, area), N experts, K slots,
B replicates, R shuffled orders, W windows, L labellings, X different lengths.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import NamedTuple

import numpy as np
import pandas as pd

from moe_probe.analysis.accumulators.documents import (
    DocumentCounts,
    cluster_moments,
    document_labels,
)
from moe_probe.analysis.accumulators.gaps import Gaps, IdleRuns
from moe_probe.analysis.accumulators.pass_experts import PassExperts, PassRuns
from moe_probe.analysis.metrics.correctness import correctness_table
from moe_probe.analysis.metrics.decodability import Decodability, decodability
from moe_probe.analysis.metrics.grouping import expert_slices
from moe_probe.analysis.metrics.permutation import (
    PermutedInformation,
    permute_labels,
    permuted_information,
)
from moe_probe.analysis.metrics.stability import divergence_deff
from moe_probe.analysis.metrics.variance_partition import variance_table
from moe_probe.analysis.reading.index import Clusters
from moe_probe.analysis.reading.orders import Order
from moe_probe.analysis.settings import Settings
from moe_probe.analysis.statistics.clusters import ClusterMoments, halves, replicate_sums
from moe_probe.analysis.statistics.moderated import interval_deffs
from moe_probe.trace import LayerSpec


@dataclass(frozen=True)
class Resampling:
    """How documents are resampled, the same way in every layer."""

    weights_BC: np.ndarray
    """Poisson bootstrap: how often each replicate draws each cluster."""
    permuted_LD: np.ndarray
    """Groups of the documents, permuted."""
    document_D: np.ndarray
    """Clusters that are documents, not prefixes, and have counted tokens."""
    half_C: np.ndarray
    """Half of the documents that each is in, 0 or 1; -1 for clusters that are none of them."""


@dataclass(frozen=True)
class Idle:
    """Idle runs of one layer, in tokens."""

    runs: IdleRuns
    """In the order that was asked for, if it is one of tokens; else in canonical order."""
    longest_RN: np.ndarray
    """Longest runs in shuffled orders of the documents."""
    first_seen_RN: np.ndarray
    runs_RWN: np.ndarray
    """Runs of at least W tokens in those orders."""
    stretches_2X: np.ndarray
    """Different lengths, in tokens, of the stretches that no run of `runs` leaves, and how many
    there are of each: one stretch of all tokens, or every document in the order request-local."""


@dataclass(frozen=True)
class LayerState:
    """What one layer's documents say; small, and without a row per document."""

    spec: LayerSpec
    moments: ClusterMoments
    replicates_BN: np.ndarray
    halves_2N: np.ndarray
    halves_deff: float
    """Design effect of the divergence of the two halves: of their documents, prefixes left out."""
    segment_deffs: tuple[float, float]
    """The same of documents within subjects, and of the shared prefixes; NaN where unknown."""
    documents: int
    """With counted tokens, shared prefixes included."""
    documents_seen_N: np.ndarray
    """Rows of the table of documents that select each expert: documents unless `is_grouped`."""
    longest_absence_N: np.ndarray
    """Longest run of such rows, in canonical order, without the expert."""
    information: PermutedInformation | None
    """None with fewer than two subjects."""
    decodability: Decodability | None
    variance: pd.DataFrame
    correctness: pd.DataFrame
    idle: Idle | None
    """None for rules that count tokens more than once."""
    passes: PassRuns | None
    """Idle runs in forward passes, if the order asks for them; None likewise."""

    @cached_property
    def interval_deffs_N(self) -> np.ndarray:
        """`interval_deffs` of all text: float64, NaN where undefined."""
        return np.asarray(interval_deffs(self.moments.pooled())[0])

    @property
    def is_grouped(self) -> bool:
        """Whether documents share rows, so that nobody knows which of them select an expert."""
        return self.documents > int(self.moments.clusters_S.sum())


class LayerTables(NamedTuple):
    """Accumulators that exist for the layers at hand only."""

    documents: DocumentCounts
    gaps: Gaps | None = None
    """None for rules that count tokens more than once."""
    passes: PassExperts | None = None
    """Likewise; only if idle runs are counted in forward passes."""


def finish_layer(
    tables: LayerTables,
    layer: int,
    clusters: Clusters,
    resampling: Resampling,
    settings: Settings,
    kernels: ModuleType,
) -> LayerState:
    """Reduce one layer's tables to what metrics need of them."""
    documents, gaps, passes = tables
    counts_CN, tokens_C = (documents.arrays[layer][name] for name in ("counts_CN", "tokens_C"))
    chosen_D = resampling.document_D
    counts_DN, tokens_D = counts_CN[chosen_D], tokens_C[chosen_D]
    group_D = clusters.group_C[chosen_D]
    answers_D = clusters.answered_C[chosen_D], clusters.right_C[chosen_D]
    groups = len(documents.axes.groups)
    information, guess = None, None
    if len(np.unique(group_D)) > 1:
        information = permuted_information(counts_DN, group_D, resampling.permuted_LD)
        guess = decodability(counts_DN, group_D)
    area_of = {area: number for number, (_, _, area) in enumerate(documents.axes.groups)}
    area_D = np.array([area_of[documents.axes.groups[g][2]] for g in group_D], np.int64)
    both = [counts_CN[resampling.half_C == half].sum(axis=0, dtype=np.int64) for half in (0, 1)]
    of_documents = cluster_moments(counts_DN, tokens_D, group_D, groups)
    rest_C = np.where(resampling.half_C < 0, clusters.group_C, -1)
    of_prefixes = cluster_moments(counts_CN, tokens_C, rest_C, groups)
    within = divergence_deff(of_documents, within_subjects=True)
    return LayerState(
        spec=documents.layers[layer],
        moments=of_documents.merged(of_prefixes),
        replicates_BN=replicate_sums(resampling.weights_BC, counts_CN),
        halves_2N=np.stack(both),
        halves_deff=divergence_deff(of_documents),
        segment_deffs=(within, divergence_deff(of_prefixes) if of_prefixes.n_S.any() else within),
        documents=int(clusters.documents_C[tokens_C > 0].sum()),
        documents_seen_N=(counts_DN > 0).sum(axis=0),
        longest_absence_N=kernels.longest_absence(counts_CN, chosen_D),
        information=information,
        decodability=guess,
        variance=_by_experts(variance_table, counts_DN, tokens_D, group_D, area_D),
        correctness=_by_experts(correctness_table, counts_DN, tokens_D, group_D, *answers_D),
        idle=None if gaps is None else _idle(gaps, layer, counts_CN, settings.of_tokens, kernels),
        passes=None if passes is None else passes.runs(layer, settings.windows),
    )


def _by_experts(
    tabulate: Callable[..., pd.DataFrame], counts_DN: np.ndarray, *facts: np.ndarray
) -> pd.DataFrame:
    """Tabulate some experts at a time: shares of documents take four times what counts take."""
    slices = expert_slices(*counts_DN.shape)
    frames = [tabulate(counts_DN[:, experts], *facts) for experts in slices]
    table = pd.concat(frames, ignore_index=True)
    return table.assign(expert=np.arange(len(table)))


def _idle(
    gaps: Gaps, layer: int, counts_CN: np.ndarray, settings: Settings, kernels: ModuleType
) -> Idle:
    counts_N = counts_CN.sum(axis=0, dtype=np.int64)
    longest_RN, first_seen_RN, windows_RW3N = gaps.longest(
        layer, settings.shuffled, counts_N, kernels
    )
    return Idle(
        runs=gaps.runs(layer, settings.order, counts_N, kernels),
        longest_RN=longest_RN,
        first_seen_RN=first_seen_RN,
        runs_RWN=windows_RW3N[:, :, 0],
        stretches_2X=_stretches(gaps.arrays[layer]["next_C"], settings.order),
    )


def _stretches(tokens_C: np.ndarray, order: Order) -> np.ndarray:
    is_local = order.kind == "request-local"
    length_S = tokens_C[tokens_C > 0] if is_local else np.array([tokens_C.sum()])
    return np.stack(np.unique(length_S, return_counts=True)).astype(np.int64)


def resampling_of(
    clusters: Clusters, tokens_C: np.ndarray, weights_BC: np.ndarray, settings: Settings
) -> Resampling:
    """Draw permutations of the documents' groups, and halve the documents by a hash of their keys.

    Args:
        clusters: Of the trace.
        tokens_C: Tokens of each that the rule counts.
        weights_BC: Of the bootstrap.
        settings: Number of permutations, and seed.
    """
    label_C = document_labels(clusters, tokens_C)
    document_D = np.flatnonzero(label_C >= 0)
    rng = np.random.default_rng(settings.seed)
    permuted_LD = permute_labels(label_C[document_D], settings.permutations, rng)
    half_C = np.where(label_C >= 0, halves(clusters.keys), -1)
    return Resampling(weights_BC, permuted_LD, document_D, half_C)
