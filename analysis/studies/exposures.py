"""F6 of a trace: right answers by experts used."""

from __future__ import annotations

import numpy as np
import pandas as pd

from moe_probe.analysis.metrics.correctness import exposure_table
from moe_probe.analysis.reading.rules import Rule
from moe_probe.analysis.scan import Progress
from moe_probe.analysis.statistics.multiplicity import benjamini_hochberg
from moe_probe.analysis.studies.documents import documents_by_layer
from moe_probe.analysis.studies.scanning import AnyTrace, source_of, stacked
from moe_probe.errors import TraceError


def exposures(
    trace: AnyTrace,
    *,
    rule: Rule | str | None = None,
    least: float = 0.0,
    threads: int | None = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Tabulate the accuracy of documents that use each expert and of those that do not (F6).

    Subjects differ both in accuracy and in the experts they use, so read the difference within
    subjects. Even that is no evidence of a cause: long questions may be harder, and use more
    experts.

    Args:
        trace: The trace, or where it lies.
        rule: Which tokens count; the trace's default rule if None.
        least: A document uses an expert if a greater share of its tokens selects it; 0: if any
            token does.
        threads: Threads of the scan; all processors if None.
        progress: Called with the number of layers done, and of all.

    Returns:
        One row per layer and expert.
        layer, expert
        exposed  documents that use it, of those known to be right or wrong; of more than 16,384
            documents neighbours use what any of them does
        accuracy_exposed, accuracy_unexposed  share of right documents; null without any
        difference  the first less the second, over all subjects: mixed with what subjects are
        difference_within  the same between documents of one subject, averaged with the weights of
            Cochran, Mantel and Haenszel; null where use varies in no subject
        z  of the latter over its standard error if answers are permuted within subjects: near
            N(0, 1) by chance, with longer tails where few documents use or do not use the expert
        q_value  two-sided, of the tails that permuted answers have, Benjamini-Hochberg over all
            layers and experts

    Raises:
        TraceError: the trace has no per-token rows, or no document known to be right or wrong, or
            is damaged.
        ValueError: there is no such rule or share.
    """
    if not 0 <= least < 1:
        raise ValueError(f"least={least}: a share of a document's tokens, from 0 to below 1")
    source = source_of(trace)
    if not source.index.clusters.answered_C.any():
        raise TraceError(
            f"{source.trace.path} does not say of any document whether it was answered rightly, "
            "which this needs. Record a task that has a metric of each document, as MMLU."
        )
    tables = (
        (layer, exposure_table(d.counts_DN, d.tokens_D, d.group_D, d.answered_D, d.right_D, least))
        for layer, d in documents_by_layer(source, rule, threads, progress)
    )
    found = stacked(tables, source, rule)
    found["q_value"] = benjamini_hochberg(found.pop("p_value").to_numpy(np.float64))
    return found
