"""The documents of a trace, layer by layer, for studies that resample or permute them.

Shape suffixes: D documents, N experts of a layer, C clusters of the scan.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from moe_probe.analysis.accumulators.documents import (
    DocumentCounts,
    cluster_tokens,
    document_labels,
)
from moe_probe.analysis.reading.rules import Rule
from moe_probe.analysis.reading.source import Source
from moe_probe.analysis.scan import Progress
from moe_probe.analysis.studies.scanning import by_layers, facts_of
from moe_probe.trace import LayerSpec


@dataclass(frozen=True)
class Documents:
    """The documents of one layer that have counted tokens; shared prefixes are left out."""

    counts_DN: np.ndarray
    tokens_D: np.ndarray
    group_D: np.ndarray
    answered_D: np.ndarray
    """1 if the answer is known to be right or wrong; of a row that several share, how many are."""
    right_D: np.ndarray


def documents_by_layer(
    source: Source, rule: Rule | str | None, threads: int | None, progress: Progress | None
) -> Iterator[tuple[int, Documents]]:
    """Yield each layer and its documents, scanning a few layers at a time."""
    _, chosen, index = facts_of(source, rule)
    tokens_C = cluster_tokens(source, chosen)
    most, clusters = int(tokens_C.max(initial=0)), index.clusters
    document_D = np.flatnonzero(document_labels(clusters, tokens_C) >= 0)

    def make(layers: Mapping[int, LayerSpec]) -> tuple[DocumentCounts]:
        return (DocumentCounts(layers, chosen, index, most=most),)

    for layer, (documents,) in by_layers(source, make, threads, progress):
        yield (
            layer,
            Documents(
                counts_DN=documents.arrays[layer]["counts_CN"][document_D],
                tokens_D=tokens_C[document_D],
                group_D=clusters.group_C[document_D],
                answered_D=clusters.answered_C[document_D],
                right_D=clusters.right_C[document_D],
            ),
        )
