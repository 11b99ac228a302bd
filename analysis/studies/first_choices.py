"""E1 of a trace, of first choices: which expert the router prefers by subject.

Shape suffixes: T counted rows of a part, S groups (task, subject, area), N experts of a layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType

import numpy as np
import pandas as pd

from moe_probe.analysis.accumulators.counted import Counted
from moe_probe.analysis.accumulators.counts import Counts
from moe_probe.analysis.reading.index import subject_names
from moe_probe.analysis.reading.rules import Rule
from moe_probe.analysis.reading.source import Rows
from moe_probe.analysis.scan import Progress
from moe_probe.analysis.statistics.undefined import positive
from moe_probe.analysis.studies.scanning import (
    AnyTrace,
    facts_of,
    fill,
    source_of,
    stacked,
    with_all,
)
from moe_probe.errors import TraceError
from moe_probe.trace import LayerSpec


def first_choices(
    trace: AnyTrace,
    *,
    rule: Rule | str | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Tabulate how often each expert is the router's first choice in every subject (E1).

    Args:
        trace: The trace, or where it lies.
        rule: Which tokens count; the trace's default rule if None.
        threads: Threads of the scan; all processors if None.
        progress: Called with the number of layers done, and of all.

    Returns:
        One row per layer, subject and expert, and first of each layer those over all subjects.
        layer
        subject  "" for all
        expert
        count  tokens whose first slot it has
        frequency  share of the subject's tokens, in [0, 1]; null without tokens
        frequency_null  all experts alike: 1 / N, less by the share of tokens with no first slot
        lead  share of the expert's selections in the subject that are first choices: near 1 it
            leads there, near 0 it fills up. Null for one that is never selected
        lead_null  the same of all experts together: 1 / k where no slot is empty
        Source: OLMoE (2409.02060), equation 7 with k = 1; Mixtral (2401.04088), "first choice".

    Raises:
        TraceError: the trace has no per-token rows, or does not say how slots are ordered, or is
            damaged.
        ValueError: there is no such rule.
    """
    source = source_of(trace)
    if source.trace.run.get("slot_order", "unknown") == "unknown":
        raise TraceError(
            f"{source.trace.path} does not say in which order the slots of a token are "
            "(slot_order: unknown), so that nobody knows the first choice. Import it with weights."
        )
    layers, chosen, index = facts_of(source, rule)
    counts = Counts(layers, chosen, index)
    first = _FirstChoices(layers, chosen, len(index.groups))
    fill(source, [counts, first], threads, progress)
    subjects = ["", *subject_names(index.groups)]

    def table(layer: int) -> pd.DataFrame:
        counts_SN, tokens_S = counts.by_group(layer)
        first_SN, _ = with_all(first.counts_SN[layer], tokens_S)
        counts_SN, tokens_S = with_all(counts_SN, tokens_S)
        experts = first_SN.shape[1]
        first_S = first_SN.sum(axis=1)
        return pd.DataFrame(
            {
                "subject": np.repeat(subjects, experts),
                "expert": np.tile(np.arange(experts), len(subjects)),
                "count": first_SN.ravel(),
                "frequency": (first_SN / positive(tokens_S)[:, None]).ravel(),
                "frequency_null": np.repeat(first_S / positive(tokens_S) / experts, experts),
                "lead": (first_SN / positive(counts_SN)).ravel(),
                "lead_null": np.repeat(first_S / positive(counts_SN.sum(axis=1)), experts),
            }
        )

    return stacked(((layer, table(layer)) for layer in source.layers), source, rule)


class _FirstChoices:
    """First slots by subject: by layer, int64 [S, N]. Empty ones are of no expert."""

    weights = lookahead = False

    def __init__(self, layers: Mapping[int, LayerSpec], rule: Rule, groups: int) -> None:
        self.layers, self._rule = layers, rule
        self.counts_SN = {
            layer: np.zeros((groups, spec.num_experts), np.int64) for layer, spec in layers.items()
        }

    def add(self, rows: Rows, layer: int, kernels: ModuleType) -> None:
        counted, counts_SN = Counted.of(rows.pieces(self._rule)), self.counts_SN[layer]
        expert_T = rows.topk_ids(layer)[counted.row_T, 0].astype(np.int64)
        is_real_T = expert_T < counts_SN.shape[1]
        place_T = (counted.group_T * counts_SN.shape[1] + expert_T)[is_real_T]
        np.add.at(counts_SN.reshape(-1), place_T, counted.weight_T[is_real_T])
