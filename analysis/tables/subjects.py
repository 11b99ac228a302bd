"""The tables of subjects: experts by subject, information, divergence, segments and rules.

Shape suffixes: S groups (task, subject, area), G segments, N experts of a layer.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from moe_probe.analysis.layer_state import LayerState
from moe_probe.analysis.metrics.decomposition import decompose, decomposition_null
from moe_probe.analysis.metrics.divergence import (
    divergence_null,
    hellinger,
    jensen_shannon,
    random_jaccard,
    top_jaccard,
)
from moe_probe.analysis.metrics.imbalance import kl_uniform
from moe_probe.analysis.metrics.information import (
    information_null,
    mutual_information,
    uncertainty_coefficient,
)
from moe_probe.analysis.metrics.permutation import permutation_q_values
from moe_probe.analysis.metrics.segments import segment_deffs, segments_table
from moe_probe.analysis.metrics.sensitivity import rules_table
from moe_probe.analysis.metrics.stability import divergence_deff
from moe_probe.analysis.metrics.subjects import frequency_null, subjects_table
from moe_probe.analysis.statistics.multiplicity import benjamini_hochberg
from moe_probe.analysis.sums import Sums
from moe_probe.analysis.tables.design_effects import mean_deffs, subject_deffs, within_deffs
from moe_probe.trace import SEGMENTS

_SUBJECT_COLUMNS = ["layer", "expert", "subject", "count", "frequency"]
_SUBJECT_COLUMNS += ["lift", "log_odds", "z", "q_value", "frequency_null", "frequency_null_sd"]


def subjects(sums: Sums) -> pd.DataFrame:
    """Tabulate every expert and subject.

    Returns:
        layer, expert, subject
        count  selections
        frequency  share of the subject's tokens that select the expert
        lift  that over the same of all other subjects
        log_odds  against the other subjects, in nats, drawn towards 0 (Monroe et al. 2008)
        z  log_odds over its standard error, with the subject's design effect, or the expert's own
            where that is larger
        q_value  of z, Benjamini-Hochberg over the whole table
        frequency_null, frequency_null_sd  frequency if every token chose k of N experts at random,
            k/N, and its standard deviation, with the subject's median design effect
        Subjects with fewer than 30 documents have no log_odds, z and q_value.
    """
    tables = []
    for layer, spec in sums.specs.items():
        counts_SN, tokens_S = sums.by_group(layer)
        state = sums.layers.get(layer)
        deff_S = subject_deffs(state, len(tokens_S), spec.num_experts)
        deff_SN = np.fmax(deff_S[:, None], within_deffs(state, spec.num_experts))
        table = subjects_table(counts_SN, tokens_S, sums.documents_S, deff_SN, sums.subjects)
        fair, sd_S = frequency_null(spec.num_experts, sums.set_sizes(layer), tokens_S, deff_S)
        table["frequency_null"] = fair
        table["frequency_null_sd"] = np.tile(sd_S, spec.num_experts)
        tables.append(table.assign(layer=layer))
    table = pd.concat(tables, ignore_index=True)
    table["q_value"] = benjamini_hochberg(table["p_value"].to_numpy(np.float64))
    return table[_SUBJECT_COLUMNS]


def specialization(sums: Sums) -> pd.DataFrame:
    """Tabulate what routing tells about the subject.

    Returns:
        layer
        mutual_information_bits  I(expert; subject), subjects weighted as observed
        null, null_95  mean and 95 % quantile of I over permutations of the documents' subjects;
            of the shared prefixes, which no permutation moves, neither has any
        p_value  of I among the permutations
        mean_subject_kl  mean over subjects of KL(q_subject || uniform), in nats
        pooled_kl  KL(q || uniform) in nats: unfair overall. mean_subject_kl is pooled_kl plus I
            (in nats), an identity
        documents_bits  I over the documents alone, which is what `null` compares with
        documents_pooled_kl  pooled_kl of the documents alone, in nats
        plug_in_bias_bits  of I, with the subjects' design effects
        equal_weights_bits  I with every subject weighing the same: their Jensen-Shannon divergence
        uncertainty  I over the entropy of the subject, in [0, 1]
        decodability, decodability_null  share of documents whose subject naive Bayes finds from
            their selections, cross-validated, and by always saying the most frequent one
        balanced_decodability, balanced_decodability_null  the mean over subjects, and 1 / S
        q_value  p_value, adjusted over all layers: `permutation_q_values`
        mean_subject_kl_null, pooled_kl_null  of fair routing, to first order: `decomposition_null`
            at A over the mean of the subjects' design effects, and over that of all text; of each
            the mean over experts that divergences have
    """
    table = pd.DataFrame([_information_row(sums, layer) for layer in sums.specs])
    states = [state.information for state in sums.layers.values() if state.information is not None]
    table["q_value"] = permutation_q_values(
        table["p_value"].to_numpy(np.float64),
        [information.excess for information in states],
        sums.settings.permutations,
    )
    nulls = [_decomposition_nulls(sums, layer) for layer in sums.specs]
    return table.assign(**pd.DataFrame(nulls, columns=["mean_subject_kl_null", "pooled_kl_null"]))


def _decomposition_nulls(sums: Sums, layer: int) -> tuple[float, float]:
    counts_SN, state = sums.by_group(layer)[0], sums.layers.get(layer)
    groups, num_experts = counts_SN.shape
    is_there_S = counts_SN.any(axis=1)
    deff_S = mean_deffs(state, groups)[is_there_S]
    pooled = np.nan if state is None else divergence_deff(state.moments)
    pooled = np.nan_to_num(pooled, nan=1.0)
    facts = int(is_there_S.sum()), num_experts, sums.set_sizes(layer).null_k
    slots = int(counts_SN.sum())
    if not slots:
        return math.nan, math.nan
    return (
        float(deff_S.mean()) * decomposition_null(*facts, slots).within_kl,
        float(pooled) * decomposition_null(*facts, slots).pooled_kl,
    )


def _information_row(sums: Sums, layer: int) -> dict[str, Any]:
    state = sums.layers.get(layer)
    counts_SN, _ = sums.by_group(layer)
    found = None if state is None else state.information
    guess = None if state is None else state.decodability
    null_R = np.full(1, np.nan) if found is None or not len(found.null_R) else found.null_R
    parts = decompose(counts_SN)
    used = int((counts_SN.sum(axis=0) > 0).sum())
    null_k, deff_S = sums.set_sizes(layer).null_k, mean_deffs(state, len(counts_SN))
    bias = information_null(counts_SN.sum(axis=1), used, null_k, deff_S)
    return {
        "layer": layer,
        "mutual_information_bits": parts.information / math.log(2),
        "null": float(null_R.mean()),
        "null_95": float(np.quantile(null_R, 0.95)),
        "p_value": np.nan if found is None else found.p_value,
        "mean_subject_kl": parts.within_kl,
        "pooled_kl": parts.pooled_kl,
        "documents_bits": np.nan if found is None else found.information,
        "documents_pooled_kl": _documents_kl(state),
        "plug_in_bias_bits": bias,
        "equal_weights_bits": float(mutual_information(counts_SN, equal_weights=True)),
        "uncertainty": float(uncertainty_coefficient(counts_SN)),
        "decodability": np.nan if guess is None else guess.accuracy,
        "decodability_null": np.nan if guess is None else guess.majority_share,
        "balanced_decodability": np.nan if guess is None else guess.balanced_accuracy,
        "balanced_decodability_null": np.nan if guess is None else guess.chance,
    }


def _documents_kl(state: LayerState | None) -> float:
    # The two halves are all documents, without the shared prefixes.
    return np.nan if state is None else float(kl_uniform(state.halves_2N.sum(axis=0)))


def divergence(sums: Sums) -> pd.DataFrame:
    """Tabulate every two subjects.

    Returns:
        layer, subject, other
        divergence_bits  Jensen-Shannon divergence of their assignment shares, in [0, 1]
        divergence_null_bits  from noise alone, with the subjects' design effects
        hellinger  distance of the shares, in [0, 1]; its square is divergence_bits, or down to
            ln 2 times that
        top_jaccard, top_jaccard_null  Jaccard index of their k busiest experts, and of random sets
    """
    first, second = np.triu_indices(len(sums.subjects), 1)
    names = np.array(sums.subjects, object)
    tables = []
    for layer, spec in sums.specs.items():
        counts_SN, _ = sums.by_group(layer)
        deff_S = mean_deffs(sums.layers.get(layer), len(counts_SN))
        used = int((counts_SN.sum(axis=0) > 0).sum())
        sizes_S, null_k = counts_SN.sum(axis=1), sums.set_sizes(layer).null_k
        null_SS = divergence_null(sizes_S, used, null_k, deff_S)
        columns = {"subject": names[first], "other": names[second]}
        columns["divergence_bits"] = jensen_shannon(counts_SN)[first, second]
        columns["divergence_null_bits"] = null_SS[first, second]
        columns["hellinger"] = hellinger(counts_SN)[first, second]
        columns["top_jaccard"] = top_jaccard(counts_SN, spec.top_k)[first, second]
        null = random_jaccard(spec.num_experts, spec.top_k)
        tables.append(pd.DataFrame({"layer": layer, **columns, "top_jaccard_null": null}))
    return pd.concat(tables, ignore_index=True)


def segments(sums: Sums) -> pd.DataFrame:
    """Tabulate every two segments of the text, subjects pooled: `segments_table`.

    The null is of documents within subjects, and of the shared prefixes among each other, null
    where these are fewer than two; what a document has of its own cancels as far as it is in both.
    """
    tables = []
    for layer, spec in sums.specs.items():
        counts_GN = sums.counts.arrays[layer]["counts_GN"]
        by_segment = counts_GN.reshape(-1, len(SEGMENTS), spec.num_experts).sum(axis=0)
        null_k = sums.set_sizes(layer).null_k
        table = segments_table(by_segment, SEGMENTS, null_k, _segment_deffs(sums, layer))
        table.insert(0, "layer", layer)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def _segment_deffs(sums: Sums, layer: int) -> np.ndarray | float:
    state = sums.layers.get(layer)
    if state is None or sums.segment_tokens_CG is None or sums.is_prefix_C is None:
        return math.nan
    return segment_deffs(sums.segment_tokens_CG, sums.is_prefix_C, state.segment_deffs)


def rules(sums: Sums) -> pd.DataFrame:
    """Tabulate how much the counting rule decides: `rules_table` for every rule counted."""
    tables = []
    for layer, spec in sums.specs.items():
        found = {str(sums.settings.rule): sums.by_group(layer)[0]}
        found |= {str(rule): counts.by_group(layer)[0] for rule, counts in sums.by_rule.items()}
        table = rules_table(found, spec.top_k, sums.set_sizes(layer).null_k)
        table.insert(0, "layer", layer)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)
