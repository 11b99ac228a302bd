"""A8 of a trace: how much text it takes until experts are ranked the same way again.

Shape suffixes: D documents, R splits, N experts of a layer; 2 parts of a split.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from moe_probe.analysis.metrics.grouping import sums_by_label
from moe_probe.analysis.metrics.stability import bottom_overlap, spearman, split_null, top_overlap
from moe_probe.analysis.reading.rules import Rule
from moe_probe.analysis.scan import Progress
from moe_probe.analysis.studies.documents import Documents, documents_by_layer
from moe_probe.analysis.studies.scanning import AnyTrace, refuse_none, source_of, stacked

PARTS = (0.5, 0.25, 0.125, 0.0625)
_TENTH = 0.1


def ranking_stability(
    trace: AnyTrace,
    *,
    rule: Rule | str | None = None,
    parts: Sequence[float] = PARTS,
    splits: int = 20,
    seed: int = 0,
    threads: int | None = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Tabulate how alike two random parts of the documents rank the experts (A8).

    Where agreement still grows from a quarter to half of the documents, more text would change the
    ranking of all of them, too.

    Args:
        trace: The trace, or where it lies.
        rule: Which tokens count; the trace's default rule if None. Shared prefixes never do.
        parts: Sizes of each of the two, as shares of all documents, at most 0.5.
        splits: How often two parts that share no document are drawn; values are means over them.
        seed: Of the draws.
        threads: Threads of the scan; all processors if None.
        progress: Called with the number of layers done, and of all.

    Returns:
        One row per layer and size.
        layer
        part  share of the documents in each of the two
        documents, tokens  of each, the latter a mean; of more than 16,384 documents neighbours are
            one. Below one document correlation and overlaps are null
        spearman  rank correlation of the loads, in [-1, 1]; 0 by chance
        spearman_low, spearman_high  5 % and 95 % quantiles over splits
        spearman_null_sd  1 / sqrt(N - 1), of one split by chance
        number  m, a tenth of the experts, at least one
        bottom_overlap, top_overlap  share of the m least used, and of the m busiest, that both have
        overlap_null, overlap_null_sd  m / N, of both by chance, and the standard deviation of one
            split

    Raises:
        TraceError: the trace has no per-token rows, or is damaged.
        ValueError: there is no such rule, no split, or no such part.
    """
    refuse_none("{} splits into parts", splits)
    if not parts or not all(0 < part <= 0.5 for part in parts):
        raise ValueError(f"splits into parts {list(parts)}: shares above 0, up to 0.5")
    source = source_of(trace)

    def row(documents: Documents, part: float) -> dict[str, float]:
        number = int(len(documents.tokens_D) * part)
        rng = np.random.default_rng(seed)
        drawn_RD = [rng.permutation(len(documents.tokens_D)) for _ in range(splits)]
        halves_R2N = np.stack(
            [_parts(documents.counts_DN, drawn_D, number) for drawn_D in drawn_RD]
        )
        tokens = [documents.tokens_D[drawn_D[: 2 * number]].sum() / 2 for drawn_D in drawn_RD]
        first_RN, second_RN = halves_R2N[:, 0], halves_R2N[:, 1]
        experts = halves_R2N.shape[2]
        least = max(round(_TENTH * experts), 1)
        null = split_null(experts, 1, (0, 0), least)
        rank_R = spearman(first_RN, second_RN)
        low, high = np.quantile(rank_R, (0.05, 0.95))
        return {
            "part": part,
            "documents": number,
            "tokens": float(np.mean(tokens)),
            "spearman": float(rank_R.mean()),
            "spearman_low": float(low),
            "spearman_high": float(high),
            "spearman_null_sd": null.spearman_sd,
            "number": least,
            "bottom_overlap": float(bottom_overlap(first_RN, second_RN, least).mean()),
            "top_overlap": float(top_overlap(first_RN, second_RN, least).mean()),
            "overlap_null": null.overlap,
            "overlap_null_sd": null.overlap_sd,
        }

    layers = documents_by_layer(source, rule, threads, progress)
    tables = (
        (layer, pd.DataFrame([row(documents, part) for part in parts]))
        for layer, documents in layers
    )
    return stacked(tables, source, rule)


def _parts(counts_DN: np.ndarray, drawn_D: np.ndarray, number: int) -> np.ndarray:
    """Sum the first `number` of the drawn documents, and as many after them: float64 [2, N]."""
    both_D = drawn_D[: 2 * number]
    return sums_by_label(counts_DN[both_D], np.arange(len(both_D)) // max(number, 1), 2)
