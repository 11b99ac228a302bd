"""E9 of a trace: how selective experts are about subjects, and subjects about experts.

Shape suffixes: D documents, S groups (task, subject, area), N experts of a layer, R permutations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd

from moe_probe.analysis.metrics import selectivity
from moe_probe.analysis.metrics.divergence import mean_of_pairs, total_variation_between
from moe_probe.analysis.metrics.grouping import sums_by_label
from moe_probe.analysis.metrics.permutation import permute_labels
from moe_probe.analysis.reading.index import subject_names
from moe_probe.analysis.reading.rules import Rule
from moe_probe.analysis.reading.source import Source
from moe_probe.analysis.scan import Progress
from moe_probe.analysis.studies.documents import Documents, documents_by_layer
from moe_probe.analysis.studies.scanning import AnyTrace, refuse_none, source_of, stacked


def expert_selectivity(
    trace: AnyTrace,
    *,
    rule: Rule | str | None = None,
    permutations: int = 20,
    seed: int = 0,
    threads: int | None = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Tabulate how evenly each expert is used over subjects, all of which weigh the same (E9).

    Args:
        trace: The trace, or where it lies.
        rule: Which tokens count; the trace's default rule if None. Shared prefixes never do.
        permutations: Of the documents' subjects, for the nulls.
        seed: Of the permutations.
        threads: Threads of the scan; all processors if None.
        progress: Called with the number of layers done, and of all.

    Returns:
        One row per layer and expert; `<name>_null` is the mean where subjects are dealt out anew
        among the documents. All subjects have documents of all lengths then: where those of some
        are much shorter than others', experts look selective beside it for want of tokens.
        layer, expert
        subject_entropy, subject_entropy_null  entropy of P(subject|expert) over ln S, in [0, 1]:
            1 is used by all alike, 0 by one subject alone; null with fewer than two subjects
        subject_gini, subject_gini_null  Gini index of the same, in [0, 1 - 1/S]
        subjects_above_fair, subjects_above_fair_null  subjects with relative load above 1
        All are null for an expert that nothing selects, the last one without any selections.

    Raises:
        TraceError: the trace has no per-token rows, or is damaged.
        ValueError: there is no such rule, or no permutation.
    """

    def table(counts_SN: np.ndarray, tokens_S: np.ndarray) -> pd.DataFrame:
        return selectivity.expert_selectivity(counts_SN, tokens_S).set_index("expert")

    source = source_of(trace)
    found = documents_by_layer(source, rule, threads, progress)
    return stacked(_beside_null(found, source, table, permutations, seed), source, rule)


def subject_selectivity(
    trace: AnyTrace,
    *,
    rule: Rule | str | None = None,
    permutations: int = 20,
    seed: int = 0,
    threads: int | None = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Tabulate how many experts each subject uses, and how far its use is from the others' (E9).

    Args:
        trace: The trace, or where it lies.
        rule: Which tokens count; the trace's default rule if None. Shared prefixes never do.
        permutations: Of the documents' subjects, for the nulls.
        seed: Of the permutations.
        threads: Threads of the scan; all processors if None.
        progress: Called with the number of layers done, and of all.

    Returns:
        One row per layer and subject, and first of each layer one over all; `<name>_null` is the
        mean where subjects are dealt out anew among the documents. All subjects have documents of
        all lengths then: those whose documents are much shorter than others' look selective beside
        it for want of tokens.
        layer
        subject  "" for all documents
        experts_50, experts_80, experts_90, experts_99  busiest experts that carry so many percent
            of the selections, with experts_50_null, experts_80_null, experts_90_null,
            experts_99_null. Source: ESFT (2407.01906)
        effective_experts, effective_experts_null  exp(entropy) of assignment shares, in [k, N]
        total_variation, total_variation_null  mean share of selections that would go elsewhere, had
            the token one of the other subjects, in [0, 1]; over all: mean over pairs of subjects
        All are null for a subject without selections, the last with fewer than two subjects.

    Raises:
        TraceError: the trace has no per-token rows, or is damaged.
        ValueError: there is no such rule, or no permutation.
    """
    source = source_of(trace)
    subjects = subject_names(source.index.groups)

    def table(counts_SN: np.ndarray, tokens_S: np.ndarray) -> pd.DataFrame:
        both = np.concatenate([counts_SN.sum(axis=0, keepdims=True), counts_SN])
        found = selectivity.subject_selectivity(both, ["", *subjects])
        apart_SS = total_variation_between(counts_SN)
        found["total_variation"] = [mean_of_pairs(apart_SS), *_from_others(apart_SS)]
        return found.set_index("subject")

    found = documents_by_layer(source, rule, threads, progress)
    return stacked(_beside_null(found, source, table, permutations, seed), source, rule)


def _beside_null(
    layers: Iterator[tuple[int, Documents]],
    source: Source,
    table: Callable[[np.ndarray, np.ndarray], pd.DataFrame],
    permutations: int,
    seed: int,
) -> Iterator[tuple[int, pd.DataFrame]]:
    """Yield each layer's table with the mean over permuted subjects beside every column."""
    refuse_none("{} permutations", permutations)
    groups = len(source.index.groups)
    for layer, documents in layers:

        def of(label_D: np.ndarray, documents: Documents = documents) -> pd.DataFrame:
            tokens_S = np.bincount(label_D, documents.tokens_D, groups)
            return table(sums_by_label(documents.counts_DN, label_D, groups), tokens_S)

        # The same permutations in every layer: a layer's numbers do not depend on others.
        rng = np.random.default_rng(seed)
        permuted_RD = permute_labels(documents.group_D, permutations, rng).astype(np.int64)
        found, nulls = of(documents.group_D), [of(label_D) for label_D in permuted_RD]
        columns = {}
        for name in found:
            columns[name] = found[name]
            columns[f"{name}_null"] = pd.concat([null[name] for null in nulls], axis=1).mean(axis=1)
        yield layer, pd.DataFrame(columns).reset_index()


def _from_others(apart_SS: np.ndarray) -> np.ndarray:
    """Mean distance of each subject from those others that have one."""
    known_SS = ~np.isnan(apart_SS) & ~np.eye(len(apart_SS), dtype=bool)
    number_S = known_SS.sum(axis=1)
    total_S = np.where(known_SS, apart_SS, 0.0).sum(axis=1)
    return np.asarray(total_S / np.where(number_S > 0, number_S, np.nan))
