"""Tables of loads by subject, and of every trace by itself.

Shape suffixes: N experts of a layer; 2 is both traces.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from moe_probe.analysis.comparison.differences import divergence
from moe_probe.analysis.comparison.sums import Gathered, SideSums
from moe_probe.analysis.comparison.tables import corresponding, empty_table, idle_sets
from moe_probe.analysis.metrics import imbalance
from moe_probe.analysis.metrics.noise import index_noise
from moe_probe.analysis.metrics.stability import divergence_deff, spearman
from moe_probe.analysis.statistics.clusters import effective_tokens
from moe_probe.analysis.statistics.nulls import expected_indices
from moe_probe.analysis.tables.layers import INDICES


def subjects_table(found: Gathered) -> pd.DataFrame:
    """Tabulate every layer of each subject that a trace shares with the reference, by name.

    Returns:
        trace, layer, subject  all of them
        reference_tokens, tokens  counted of the subject
        divergence_bits, divergence_noise_bits, spearman, idle_reference, idle_other, idle_both
            as in `layers_table`, of the subject alone
        max_vio_reference, max_vio, effective_experts_reference, effective_experts  likewise
    """
    rows = []
    for pair in corresponding(found):
        for layer in found.reference.counts.layers:
            sides = [side.counts.by_group(layer) for side in (found.reference, pair.other)]
            known = pair.layers.get(layer)
            for place, numbers in enumerate(pair.subjects):
                loads = [side[0][number] for side, number in zip(sides, numbers, strict=True)]
                tokens = [int(side[1][number]) for side, number in zip(sides, numbers, strict=True)]
                noise = np.nan if known is None else known.subject_noise_S[place]
                subject = found.reference.subjects[numbers[0]]
                facts = {"trace": pair.other.side.label, "layer": layer, "subject": subject}
                rows.append(facts | _subject(np.stack(loads), tokens, float(noise)))
    return pd.DataFrame(rows) if rows else empty_table(["trace", "layer", "subject"])


def _subject(both_2N: np.ndarray, tokens: list[int], noise: float) -> dict[str, Any]:
    row = {
        "reference_tokens": tokens[0],
        "tokens": tokens[1],
        "divergence_bits": divergence(both_2N),
        "divergence_noise_bits": noise,
        "spearman": float(spearman(both_2N[0], both_2N[1])),
        **idle_sets(both_2N),
    }
    for name in ("max_vio", "effective_experts"):
        values = getattr(imbalance, name)(both_2N).tolist()
        row |= dict(zip((f"{name}_reference", name), values, strict=True))
    return row


def indices_table(found: Gathered) -> pd.DataFrame:
    """Tabulate every layer of every trace by itself, the reference first.

    All there is where layers or experts do not correspond. Models of other sizes are compared by
    how far an index lies above its chance value.

    Returns:
        trace, layer  all of them
        depth  place among the trace's MoE layers, 0 for the first to 1 for the last
        num_experts, top_k, tokens  N, k, T
        tokens_effective  T over the mean design effect; null without documents
        max_vio, cv, gini, entropy, effective_experts, kl_uniform, total_variation, unseen  each
            followed by `<name>_null` and `<name>_noise`, as in the table `layers` of a report;
            where tokens differ in k, nulls are of tokens that all have the mean
    """
    return pd.DataFrame(
        [_indices(side, layer) for side in found.sides for layer in side.counts.layers]
    )


def _indices(side: SideSums, layer: int) -> dict[str, Any]:
    counts, state = side.counts.layer(layer), side.layers.get(layer)
    order = list(side.counts.layers)
    spec, tokens = counts.spec, counts.tokens
    sizes = counts.set_sizes()
    null = expected_indices(spec.num_experts, sizes.null_k, sizes.null_tokens(tokens))
    row: dict[str, Any] = {
        "trace": side.side.label,
        "layer": layer,
        "depth": order.index(layer) / max(len(order) - 1, 1),
        "num_experts": spec.num_experts,
        "top_k": spec.top_k,
        "tokens": tokens,
        "tokens_effective": np.nan,
    }
    if state is not None:
        deff = divergence_deff(state.moments)
        row["tokens_effective"] = float(effective_tokens(tokens, deff))
    for name in INDICES:
        index = getattr(imbalance, name)
        is_known = state is not None and state.moments.clusters_S[0] > 1
        row[name] = float(index(counts.counts_N))
        row[f"{name}_null"] = getattr(null, name)
        row[f"{name}_noise"] = (
            float(index_noise(state.replicates_BN, index)) if state and is_known else np.nan
        )
    return row
