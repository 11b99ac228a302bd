"""E6 and E8 of a trace: which clusters of subjects recur, and whether documents cluster by them.

Shape suffixes: L layers, S groups (task, subject, area), D documents, B replicates.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from moe_probe.analysis.accumulators.documents import cluster_tokens, document_labels
from moe_probe.analysis.metrics.clustering import average_linkage, clade_chance, clades
from moe_probe.analysis.metrics.divergence import jensen_shannon
from moe_probe.analysis.metrics.grouping import sums_by_label
from moe_probe.analysis.metrics.subject_distance import mean_over_layers
from moe_probe.analysis.metrics.variance_partition import length_class, pseudo_f
from moe_probe.analysis.reading.index import subject_names
from moe_probe.analysis.reading.rules import Rule
from moe_probe.analysis.scan import Progress
from moe_probe.analysis.statistics.clusters import poisson_weights
from moe_probe.analysis.studies.documents import Documents, documents_by_layer
from moe_probe.analysis.studies.scanning import (
    AnyTrace,
    facts_of,
    labelled,
    refuse_none,
    source_of,
    stacked,
)


def subject_clades(
    trace: AnyTrace,
    *,
    rule: Rule | str | None = None,
    replicates: int = 100,
    threads: int | None = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Tabulate how often every cluster of subjects comes out again from resampled documents (E6).

    The tree is that of subjects by average linkage on the root of their Jensen-Shannon divergence,
    averaged over layers. A clade is all that one branch of it holds. One that seldom recurs says
    nothing about the subjects.

    Args:
        trace: The trace, or where it lies.
        rule: Which tokens count; the trace's default rule if None. Shared prefixes never do.
        replicates: Bootstrap replicates over documents, each weighted by Poisson(1).
        threads: Threads of the scan; all processors if None.
        progress: Called with the number of layers done, and of all.

    Returns:
        One row per clade of two or more subjects, but not of all; the nearest subjects first.
        subjects  their names, "; " in between
        size  m, how many they are
        height  mean distance of its two branches, in [0, 1]: root of bits
        recurs  share of the replicates in whose trees they are a clade, too
        recurs_null  2 S / (m (m + 1) C(S, m)), in a tree that joins random branches: a lower bound,
            since clades of the documents that are resampled recur more often even where subjects
            are alike. Source: Rosenberg (2003)
        replicates  those that draw documents of every subject; without any, recurs is null

    Raises:
        TraceError: the trace has no per-token rows, or is damaged.
        ValueError: there is no such rule, or no replicate.
    """
    refuse_none("{} replicates", replicates)
    source = source_of(trace)
    _, chosen, index = facts_of(source, rule)
    tokens_C, names = cluster_tokens(source, chosen), subject_names(index.groups)
    document_D = np.flatnonzero(document_labels(index.clusters, tokens_C) >= 0)
    keys = [index.clusters.keys[document] for document in document_D]
    weights_BD = poisson_weights(keys, replicates)
    shape = (len(names), len(names))
    bits_LSS, sum_BSS = [np.full(shape, np.nan)], np.zeros((replicates, *shape))
    for _, documents in documents_by_layer(source, rule, threads, progress):
        facts = documents.counts_DN, documents.group_D, len(names)
        bits_LSS.append(jensen_shannon(sums_by_label(*facts)))
        if documents.counts_DN.any():
            for bits_SS, weight_D in zip(sum_BSS, weights_BD, strict=True):
                bits_SS += jensen_shannon(sums_by_label(*facts, weight_D))
    tree = average_linkage(np.sqrt(mean_over_layers(np.stack(bits_LSS))))
    # A scale changes no tree.
    full_B = ~np.isnan(sum_BSS[:, tree.known_S][:, :, tree.known_S]).any(axis=(1, 2))
    again = [clades(average_linkage(np.sqrt(bits_SS))) for bits_SS in sum_BSS[full_B]]
    number = len(tree.known_S)
    rows = [
        {
            "subjects": "; ".join(names[subject] for subject in sorted(clade)),
            "size": len(clade),
            "height": height,
            "recurs": float(np.mean([clade in found for found in again])) if again else np.nan,
            "recurs_null": clade_chance(len(clade), number),
            "replicates": len(again),
        }
        for clade, height in clades(tree).items()
    ]
    columns = ["subjects", "size", "height", "recurs", "recurs_null", "replicates"]
    return labelled(pd.DataFrame(rows, columns=columns), source, rule)


def document_separation(
    trace: AnyTrace,
    *,
    rule: Rule | str | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Tabulate whether documents of one subject use experts more alike than others (E8).

    PERMANOVA on the Hellinger distance of the documents' shares: all experts of a layer at once,
    where the table `variance` has single ones.

    A document of few tokens has few experts, whatever it is about, so that short ones are alike.
    Where the shortest select each expert less than once on average, length explains up to 10 % of
    random routing, and so do subjects that differ in length; 1.5 % where they select it 1.6 times,
    below 0.3 % from 5 times on.

    Args:
        trace: The trace, or where it lies.
        rule: Which tokens count; the trace's default rule if None. Shared prefixes never do.
        threads: Threads of the scan; all processors if None.
        progress: Called with the number of layers done, and of all.

    Returns:
        One row per layer and what documents are grouped by.
        layer
        by  subject, area, or length: ten classes of equal size
        documents  that have counted tokens; of more than 16,384 neighbours are one
        pseudo_f  variance between groups over that within them. Null where every document or no
            document has a group of its own
        pseudo_f_null  1, its mean over permutations of the documents' groups, whose lengths then
            differ by chance alone
        explained  share of the summed squared distances that groups explain, adjusted: 0 by chance,
            at most 1. Subjects lie inside areas, and lengths differ between them
        Source: Anderson (2001).

    Raises:
        TraceError: the trace has no per-token rows, or is damaged.
        ValueError: there is no such rule.
    """
    source = source_of(trace)
    areas = [area for _, _, area in source.index.groups]
    area_S = np.unique(areas, return_inverse=True)[1] if areas else np.zeros(0, np.int64)

    def row(by: str, documents: Documents, label_D: np.ndarray) -> dict[str, object]:
        found = pseudo_f(documents.counts_DN, label_D)
        return {
            "by": by,
            "documents": len(label_D),
            "pseudo_f": found.pseudo_f,
            "pseudo_f_null": 1.0,
            "explained": found.explained,
        }

    def table(documents: Documents) -> pd.DataFrame:
        labels = {
            "subject": documents.group_D,
            "area": area_S[documents.group_D],
            "length": length_class(documents.tokens_D),
        }
        return pd.DataFrame([row(by, documents, label_D) for by, label_D in labels.items()])

    layers = documents_by_layer(source, rule, threads, progress)
    return stacked(((layer, table(documents)) for layer, documents in layers), source, rule)
