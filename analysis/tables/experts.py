"""The table `experts`: one row per expert of every layer.

Shape suffixes: S groups (task, subject, area), N experts of a layer.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from moe_probe.analysis.layer_state import LayerState
from moe_probe.analysis.metrics.frequency import relative_load, selection_frequency
from moe_probe.analysis.metrics.idle import idle_table
from moe_probe.analysis.metrics.idle_passes import idle_pass_table
from moe_probe.analysis.metrics.permutation import permutation_q_values
from moe_probe.analysis.metrics.presence import idle_subjects, low_subjects
from moe_probe.analysis.metrics.ranking import bottom_probability, bottom_set, rank_interval
from moe_probe.analysis.metrics.tiers import effective_documents, tiers
from moe_probe.analysis.statistics.intervals import share_interval
from moe_probe.analysis.statistics.multiplicity import benjamini_hochberg
from moe_probe.analysis.sums import Sums
from moe_probe.analysis.tables.design_effects import (
    deffs,
    median_deff,
    num_documents,
    widened_deffs,
)

_IDLE_FIRST = ("longest_idle", "current_idle", "leading_idle", "rate_deficit", "burstiness")
_IDLE_COLUMNS = (
    *_IDLE_FIRST,
    *("longest_idle_shuffled", "longest_idle_expected", "burstiness_index"),
    *("burstiness_index_null", "p_own", "p_fair"),
)
_BOTTOM = 0.1


def experts_table(sums: Sums) -> pd.DataFrame:
    """Tabulate every routed expert. Loads are relative to a fair share; runs are in `idle_unit`.

    Returns:
        layer  the model's own layer index
        expert  index in that layer
        count  selections
        frequency  p, share of tokens that select it; null without tokens
        relative_load  r, load over fair share; null without tokens
        ci_low, ci_high  95 % interval of the relative load, documents resampled; for an expert
            never selected from 0 to 3 deff / T. Null where no design effect is known
        tier  what that certifies: `metrics.tiers`
        longest_idle, current_idle, leading_idle  idle runs in the order asked for: the longest,
            that at the end, that at the beginning
        rate_deficit, burstiness  how much of the longest run its rate explains, and how much it
            does not, in nats; the median over shuffled orders of the documents
        deff  design effect of the frequency; null where it is undefined
        rank_low, rank_high  95 % interval of the rank from the least used
        in_bottom_tenth  share of bootstrap replicates that have it among the least used tenth
        longest_idle_shuffled  median over shuffled orders of the documents
        longest_idle_expected  mean longest run of independent tokens at the own rate, in one stream
            as the shuffled orders are
        burstiness_index, burstiness_index_null  Goh and Barabasi, and of independent tokens
        p_own, q_own, p_fair  gap test at the own rate, the same adjusted over all experts, and at
            the fair rate
        documents, idle_documents  documents that select it, and the longest run of those that do
            not, in canonical order; null where there are more than 16,384
        idle_subjects, low_subjects  subjects on which it is never selected, or carries less than a
            tenth of a fair share
        information_bits, information_null, information_q  I_e, what it tells about the subject;
            mean and adjusted p-value by permutation of documents
        idle_unit  of idle runs: tokens, or forward passes if the order is of them. Then the
            longest run is that of any rank, what is measured in shuffled orders is null, and
            longest_idle_expected, p_own, q_own and p_fair are of the same passes
        q_fair  p_fair, adjusted over all experts
        maybe_bottom_tenth  whether it may be among the least used tenth: `bottom_set`, in which all
            that are have a place at 95 %; null where documents are not known
    """
    table = pd.concat([_layer(sums, layer) for layer in sums.specs], ignore_index=True)
    table["q_own"] = benjamini_hochberg(table["p_own"].to_numpy(np.float64))
    states = [state.information for state in sums.layers.values() if state.information is not None]
    table["information_q"] = permutation_q_values(
        table.pop("information_p").to_numpy(np.float64),
        [information.expert_excess for information in states],
        sums.settings.permutations,
    )
    columns = list(table.columns)
    columns.insert(columns.index("p_own") + 1, columns.pop(columns.index("q_own")))
    table["q_fair"] = benjamini_hochberg(table["p_fair"].to_numpy(np.float64))
    columns.remove("maybe_bottom_tenth")
    return table[[*columns, "q_fair", "maybe_bottom_tenth"]]


def _effective_documents(state: LayerState | None) -> np.ndarray | float:
    if state is None:
        return np.nan
    pooled = state.moments.pooled()
    return effective_documents(pooled.c_SN[0], pooled.c_square_SN[0])


def _layer(sums: Sums, layer: int) -> pd.DataFrame:
    spec, state = sums.specs[layer], sums.layers.get(layer)
    counts_SN, tokens_S = sums.by_group(layer)
    counts_N, tokens = counts_SN.sum(axis=0), int(tokens_S.sum())
    wide_N = widened_deffs(state, spec.num_experts)
    to_load = spec.num_experts * tokens / max(int(counts_N.sum()), 1)
    in_tokens = idle = _idle_in_tokens(state, counts_N)
    if state is not None and state.passes is not None and sums.pass_null is not None:
        idle = idle_pass_table(counts_N, tokens, state.passes, sums.pass_null)
    # Whole numbers that can be absent.
    idle = idle.astype(dict.fromkeys(_IDLE_FIRST[:3], "Int64"))
    # Of shuffled tokens, whatever the order.
    ratio_N = in_tokens["longest_idle_shuffled"] / in_tokens["longest_idle_expected"]
    low_N, high_N = share_interval(counts_N, tokens, wide_N, median_deff(wide_N))
    return pd.DataFrame(
        {
            "layer": layer,
            "expert": np.arange(spec.num_experts),
            "count": counts_N,
            "frequency": selection_frequency(counts_N, tokens),
            "relative_load": relative_load(counts_N),
            "ci_low": low_N * to_load,
            "ci_high": high_N * to_load,
            "tier": tiers(
                counts_SN,
                high_N * to_load,
                ratio_N.to_numpy(np.float64),
                _effective_documents(state),
            ),
            **{name: idle[name] for name in _IDLE_FIRST},
            "deff": deffs(state, spec.num_experts),
            **_ranks(state, spec.num_experts),
            **{name: idle[name] for name in _IDLE_COLUMNS if name not in _IDLE_FIRST},
            **_presence(state, counts_SN),
            **_information(state, spec.num_experts),
            "idle_unit": sums.settings.order.unit,
            "maybe_bottom_tenth": _maybe_bottom(state, counts_N),
        }
    )


def _idle_in_tokens(state: LayerState | None, counts_N: np.ndarray) -> pd.DataFrame:
    if state is None or state.idle is None:
        return pd.DataFrame(np.nan, np.arange(len(counts_N)), list(_IDLE_COLUMNS))
    return idle_table(counts_N, state.idle.runs, state.idle.longest_RN)


def _ranks(state: LayerState | None, num_experts: int) -> dict[str, np.ndarray]:
    if state is None:
        blank_N = np.full(num_experts, np.nan)
        return dict.fromkeys(("rank_low", "rank_high", "in_bottom_tenth"), blank_N)
    low_N, high_N = rank_interval(state.replicates_BN)
    return {
        "rank_low": low_N,
        "rank_high": high_N,
        "in_bottom_tenth": bottom_probability(state.replicates_BN, _tenth(num_experts)),
    }


def _maybe_bottom(
    state: LayerState | None, counts_N: np.ndarray
) -> pd.api.extensions.ExtensionArray:
    if state is None or not counts_N.any():
        return pd.array([pd.NA] * len(counts_N), "boolean")
    facts = (num_documents(state), _tenth(len(counts_N)))
    inside_N = bottom_set(counts_N, state.replicates_BN, *facts)
    return pd.array(inside_N, "boolean")


def _tenth(num_experts: int) -> int:
    return max(round(_BOTTOM * num_experts), 1)


def _presence(state: LayerState | None, counts_SN: np.ndarray) -> dict[str, object]:
    blank_N = pd.array([pd.NA] * counts_SN.shape[1], "Int64")
    known = None if state is None or state.is_grouped else state
    return {
        "documents": blank_N if known is None else known.documents_seen_N,
        "idle_documents": blank_N if known is None else known.longest_absence_N,
        "idle_subjects": idle_subjects(counts_SN),
        "low_subjects": low_subjects(counts_SN),
    }


def _information(state: LayerState | None, num_experts: int) -> dict[str, np.ndarray]:
    found = None if state is None else state.information
    blank_N = np.full(num_experts, np.nan)
    return {
        "information_bits": blank_N if found is None else found.expert_information_N,
        "information_null": blank_N if found is None else found.expert_null_N,
        "information_p": blank_N if found is None else found.expert_p_value_N,
    }
