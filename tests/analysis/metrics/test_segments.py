"""Segments, counting rules and selectivity against their definitions; what a template does.

Shape suffixes: G segments, B bins, S subjects, N experts, C or D documents, T tokens, K slots,
H halves of the documents; 2 segments.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from moe_probe.analysis.accumulators.documents import cluster_moments
from moe_probe.analysis.metrics.divergence import jensen_shannon, random_jaccard
from moe_probe.analysis.metrics.information import mutual_information
from moe_probe.analysis.metrics.segments import (
    load_shift,
    position_matched_divergence,
    position_matched_null,
    segment_deffs,
    segments_table,
)
from moe_probe.analysis.metrics.selectivity import expert_selectivity, subject_selectivity
from moe_probe.analysis.metrics.sensitivity import rules_table
from moe_probe.analysis.metrics.stability import divergence_deff
from tests.analysis.documents import IDLE, deepseek_tokens, needs_data, random_documents

SEGMENTS = ("prefix", "question", "cue", "generated")


def test_segments_table() -> None:
    counts_GN = random_documents(1, apart=1.0).counts_SN
    table = segments_table(counts_GN, SEGMENTS, 2, 3.0)
    pairs = list(zip(table["segment"], table["other"], strict=True))
    assert pairs == [("prefix", "question"), ("prefix", "cue"), ("question", "cue")]
    row = table.loc[1]
    assert row["divergence_bits"] == jensen_shannon(counts_GN)[0, 2]
    total_G = counts_GN.sum(axis=1)
    noise = 3 * (6 - 2) / 8 / math.log(2) * (1 / total_G[0] + 1 / total_G[2])
    assert row["divergence_bits_null"] == pytest.approx(noise)
    shift = [7 * (counts_GN[2, e] / total_G[2] - counts_GN[0, e] / total_G[0]) for e in range(7)]
    assert row["gain"] == pytest.approx(max(shift))
    assert row["loss"] == pytest.approx(-min(shift))
    extremes = (int(np.argmax(shift)), int(np.argmin(shift)))
    assert (row["gaining_expert"], row["losing_expert"]) == extremes
    assert load_shift(counts_GN[0], counts_GN[2]) == pytest.approx(shift)
    assert np.isnan(load_shift(counts_GN[0], counts_GN[3])).all()
    empty = segments_table(np.zeros((4, 7), np.int64), SEGMENTS, 2)
    assert (len(empty), list(empty)) == (0, list(table))


def test_noise_of_documents_that_are_in_both_segments() -> None:
    """Documents that route alike throughout, of a long and a short segment, and one prefix."""
    rng = np.random.default_rng(3)
    documents, experts, top_k = 60, 24, 3
    length_DG = np.stack([rng.integers(5, 90, documents), rng.integers(1, 9, documents)], axis=1)
    found, nulls = [], []
    for _ in range(60):
        counts_DGN = np.zeros((documents, 2, experts), np.int64)
        for counts_GN, length_G in zip(counts_DGN, length_DG.tolist(), strict=True):
            burst_N = rng.normal(size=experts)
            for counts_N, length in zip(counts_GN, length_G, strict=True):
                score_TN = burst_N + rng.gumbel(size=(length, experts))
                ids_TK = np.argsort(-score_TN, axis=1)[:, :top_k]
                counts_N += np.bincount(ids_TK.ravel(), minlength=experts)
        one_D, tokens_D = np.zeros(documents, np.int64), length_DG.sum(axis=1)
        moments = cluster_moments(counts_DGN.sum(axis=1), tokens_D, one_D, 1)
        deffs = divergence_deff(moments), math.nan
        deff_GG = segment_deffs(length_DG, np.zeros(documents, bool), deffs)
        table = segments_table(counts_DGN.sum(axis=0), ("question", "cue"), top_k, deff_GG)
        found.append(table["divergence_bits"][0])
        nulls.append(table["divergence_bits_null"][0])
    assert deffs[0] > 4
    assert np.mean(found) == pytest.approx(np.mean(nulls), rel=0.1)
    with_prefix = segment_deffs(np.array([[50, 0, 0], [0, 4, 4]]), np.array([True, False]), deffs)
    assert np.isnan(with_prefix[0]).all()
    assert with_prefix[1, 2] < 1


def test_position_alone_is_no_difference_between_segments() -> None:
    """Experts depend on the position only, and segments lie at different ones."""
    rng = np.random.default_rng(0)
    share_BN = rng.dirichlet(np.ones(8), size=4)
    counts_BN = np.rint(np.array([9e6, 9e6, 1e6, 0])[:, None] * share_BN).astype(np.int64)
    other_BN = np.rint(np.array([0, 1e6, 9e6, 9e6])[:, None] * share_BN).astype(np.int64)
    plain = jensen_shannon(np.stack([counts_BN.sum(axis=0), other_BN.sum(axis=0)]))[0, 1]
    matched = position_matched_divergence(counts_BN, other_BN)
    assert plain > 0.01
    assert matched == pytest.approx(0, abs=1e-9)
    assert math.isnan(position_matched_divergence(counts_BN[[0]], other_BN[[0]]))
    # In one bin nothing is to be matched.
    rows_1N = random_documents(2, apart=1.0).counts_SN[:2, None]
    alone = position_matched_divergence(rows_1N[0], rows_1N[1])
    assert alone == pytest.approx(jensen_shannon(rows_1N[:, 0])[0, 1], abs=1e-14)


def test_rules_table() -> None:
    counts_SN = random_documents(5, apart=1.0).counts_SN
    nothing_SN = np.zeros_like(counts_SN)
    table = rules_table({"raw": 3 * counts_SN, "unique": counts_SN, "decision": nothing_SN}, 2, 2)
    table = table.set_index("rule")
    assert table["assignments"].tolist() == [3 * counts_SN.sum(), counts_SN.sum(), 0]
    raw, unique = table.loc["raw"], table.loc["unique"]
    counts_N = counts_SN.sum(axis=0)
    assert unique["max_vio"] == pytest.approx(7 * counts_N.max() / counts_N.sum() - 1)
    assert unique["unseen"] == 1
    assert unique["mutual_information_bits"] == float(mutual_information(counts_SN))
    js_SS = jensen_shannon(counts_SN)
    mean = (js_SS[0, 1] + js_SS[0, 2] + js_SS[1, 2]) / 3
    assert unique["divergence_bits"] == pytest.approx(mean)
    assert unique["jaccard_null"] == random_jaccard(7, 2)
    # Repeated tokens say the same with more confidence than they deserve.
    for name in ("max_vio", "mutual_information_bits", "divergence_bits", "jaccard", "uncertainty"):
        assert raw[name] == pytest.approx(unique[name])
    for name in ("mutual_information_bits", "divergence_bits"):
        assert raw[f"{name}_null"] == pytest.approx(unique[f"{name}_null"] / 3)
    assert table.loc["decision"].drop("assignments").isna().all()


def test_selectivity_of_experts_and_subjects() -> None:
    data = random_documents(6, apart=1.5)
    counts_SN, tokens_S = data.counts_SN, data.tokens_S
    table = expert_selectivity(counts_SN, tokens_S)
    for expert in range(7):
        row = table.loc[expert]
        share = [counts_SN[s, expert] / tokens_S[s] for s in range(3)]
        loads = [7 * counts_SN[s, expert] / counts_SN[s].sum() for s in range(3)]
        assert row["subjects_above_fair"] == sum(load > 1 for load in loads)
        if expert == IDLE:
            assert row[["subject_entropy", "subject_gini"]].isna().all()
            continue
        purity = [value / sum(share) for value in share]
        nats = -sum(value * math.log(value) for value in purity if value)
        assert row["subject_entropy"] == pytest.approx(nats / math.log(3))
        spread = sum(abs(a - b) for a in purity for b in purity) / (2 * 3)
        assert row["subject_gini"] == pytest.approx(spread)
    subjects = subject_selectivity(counts_SN, ["law", "anatomy", "virology", "empty"])
    first = sorted((counts_SN[0] / counts_SN[0].sum()).tolist(), reverse=True)
    needed = next(m for m in range(8) if sum(first[:m]) >= 0.8 - 1e-12)
    assert subjects["experts_80"][0] == needed
    nats = -sum(q * math.log(q) for q in first if q)
    assert subjects["effective_experts"][0] == pytest.approx(math.exp(nats))
    assert subjects.loc[3].drop("subject").isna().all()


def test_selectivity_without_subjects() -> None:
    one = expert_selectivity(np.array([[2, 1, 0]]), np.array([3]))
    assert one["subject_entropy"].isna().all()
    assert one["subject_gini"].isna().tolist() == [False, False, True]
    none = expert_selectivity(np.zeros((2, 3), np.int64), np.zeros(2, np.int64))
    assert none.drop(columns="expert").isna().all(axis=None)


@needs_data
def test_the_last_token_makes_tasks_look_alike_on_deepseek_v2_lite() -> None:
    """As over four tasks, where the Jaccard index is .877 for last tokens and .077 for all."""
    means = []
    for layer in range(26):
        ids_TK, document_T, subject_C = deepseek_tokens(layer)
        last_T = np.append(np.diff(document_T) > 0, True)
        rules = {}
        for rule, chosen_T in (("unique", last_T | True), ("decision", last_T)):
            subject_T = subject_C[document_T[chosen_T]]
            counts_SN = np.zeros((2, 64), np.int64)
            np.add.at(counts_SN, (subject_T[:, None], ids_TK[chosen_T]), 1)
            rules[rule] = counts_SN
        means.append(rules_table(rules, 6, 6)[["jaccard", "unseen"]].to_numpy())
    (every, unseen), (last, unseen_last) = np.mean(means, axis=0)
    assert every < 0.15
    assert last > 0.7
    assert unseen == 0
    assert unseen_last / 64 > 0.8


def test_null_of_segments_that_seldom_stand_at_the_same_positions() -> None:
    """A long question and a short cue after it: only long questions reach where the cue is."""
    rng = np.random.default_rng(0)
    share_N = rng.dirichlet(np.full(12, 5.0))
    tokens_2B = np.array([[4000, 4000, 150, 0], [0, 60, 700, 300]])
    found = []
    for _ in range(150):
        # Tokens fall into either half of the documents by chance.
        counts_2HBN = rng.poisson(tokens_2B[:, None, :, None] / 2 * share_N, (2, 2, 4, 12))
        one_HBN, other_HBN = counts_2HBN
        bits = position_matched_divergence(one_HBN.sum(axis=0), other_HBN.sum(axis=0))
        found.append((bits, position_matched_null(one_HBN, other_HBN)))
    bits, null = np.mean(found, axis=0)
    assert bits == pytest.approx(null, rel=0.08)
