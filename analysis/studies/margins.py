"""F4 of a trace with the margin of the answer in the place of right and wrong.

Shape suffixes: S sequences of the trace, C clusters (documents), D those with counted tokens.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from moe_probe.analysis.accumulators.documents import cluster_tokens, document_labels
from moe_probe.analysis.metrics.correctness import margin_table
from moe_probe.analysis.reading.rules import Rule
from moe_probe.analysis.reading.source import Source
from moe_probe.analysis.scan import Progress
from moe_probe.analysis.statistics.multiplicity import benjamini_hochberg
from moe_probe.analysis.studies.documents import Documents, documents_by_layer
from moe_probe.analysis.studies.scanning import AnyTrace, facts_of, source_of, stacked
from moe_probe.errors import TraceError


def margin_contrast(
    trace: AnyTrace,
    *,
    rule: Rule | str | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Tabulate whether experts are used more where answers have a clearer margin (F4).

    A document's margin is the log-likelihood of its best choice less that of the next, negative
    where the answer is wrong. It says more than right or wrong, but no more of a cause.

    Args:
        trace: The trace, or where it lies.
        rule: Which tokens count; the trace's default rule if None. Shared prefixes never do.
        threads: Threads of the scan; all processors if None.
        progress: Called with the number of layers done, and of all.

    Returns:
        One row per layer and expert.
        layer, expert
        documents  that have a margin; of more than 16,384 documents those that share no row
        slope  change of the expert's frequency per nat of margin, within subjects; null where
            margins vary in no subject
        standard_error  of the slope, if answers are permuted within subjects
        z  slope over that: near N(0, 1) by chance, with longer tails where few documents use the
            expert or few margins are large
        q_value  two-sided, of the tails that permuted margins have, Benjamini-Hochberg over all
            layers and experts

    Raises:
        TraceError: the trace has no per-token rows, or no document with scores of two choices that
            is known to be right or wrong, or is damaged.
        ValueError: there is no such rule.
    """
    source = source_of(trace)
    _, chosen, index = facts_of(source, rule)
    margin_C = _margins(source)
    if np.isnan(margin_C).all():
        raise TraceError(
            f"{source.trace.path} has of no document the scores of two choices and whether it was "
            "answered rightly, which this needs. Record a task of several choices, as MMLU."
        )
    label_C = document_labels(index.clusters, cluster_tokens(source, chosen))
    margin_D = margin_C[label_C >= 0]

    def table(documents: Documents) -> pd.DataFrame:
        found = margin_table(documents.counts_DN, documents.tokens_D, documents.group_D, margin_D)
        found.insert(1, "documents", int((~np.isnan(margin_D)).sum()))
        return found

    layers = documents_by_layer(source, rule, threads, progress)
    found = stacked(((layer, table(documents)) for layer, documents in layers), source, rule)
    found["q_value"] = benjamini_hochberg(found.pop("p_value").to_numpy(np.float64))
    return found


def _margins(source: Source) -> np.ndarray:
    """The margin of every document's answer, in nats: float64 [C], NaN where unknown."""
    index, table = source.index, source.trace.sequences.sort_by("sequence_id")
    scores: dict[int, dict[int, float]] = {}
    columns = (table[name].to_pylist() for name in ("choices", "choice_logliks"))
    for cluster, choices, logliks in zip(index.cluster_S.tolist(), *columns, strict=True):
        known = zip(choices or (), logliks or (), strict=False)
        scores.setdefault(cluster, {}).update(
            (c, s) for c, s in known if s is not None and np.isfinite(s)
        )
    clusters, margin_C = index.clusters, np.full(len(index.clusters), np.nan)
    for cluster, of_choice in scores.items():
        is_one = clusters.documents_C[cluster] == clusters.answered_C[cluster] == 1
        if is_one and len(of_choice) > 1:
            second, best = sorted(of_choice.values())[-2:]
            margin_C[cluster] = (best - second) * (1 if clusters.right_C[cluster] else -1)
    return margin_C
