"""Group J, token ids: how far the word alone decides the experts.

Shape suffixes: K slots, N experts of a layer, X token ids, P pairs of a token id and an expert that
occur (of `expected_top_share`: points), B token ids of a block.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from moe_probe.analysis.metrics.token_counts import VocabularyCounts

_BLOCK = 4096
"""Token ids looked at a time; bounds the memory to a few blocks [B, N]."""
_ROUNDING = 1e-12
"""What rounding leaves of log-odds that are 0."""


@dataclass(frozen=True)
class TopShare:
    """How much of a token id's tokens its favourite expert gets; NaN without token ids."""

    token_ids: int
    tokens: int
    mean: float
    """Mean over token ids, each weighing the same, of max over e of N_xe / N_x."""
    mean_null: float
    """Its expectation where experts keep their frequencies and ignore the token id."""
    weighted: float
    """Mean over tokens."""
    weighted_null: float


@dataclass(frozen=True)
class TokenRecall:
    """How well a table of token ids foresees the experts of other documents."""

    recall: float
    """Share of selections that are foreseen; NaN where nothing was selected."""
    null: float
    """The same if all tokens are expected to select the k most frequent experts."""
    known: float
    """Share of selections by token ids that the table has."""


def top_share(counts: VocabularyCounts, least: int = 10) -> TopShare:
    """Return the vocabulary specialisation of a layer (J1).

    VS(e, x) = N_xe / N_x is the share of a token id's tokens that select the expert. Rare ids
    have a high maximum by chance, those that occur once have 1: they are left out, and the null
    is that of ids as frequent.

    Args:
        counts: Of all documents.
        least: Tokens that an id must have.

    Returns:
        Source: OLMoE (2409.02060), equation 8.
    """
    frequency_N = counts.counts_N / max(counts.tokens_X.sum(), 1)
    counts = counts.frequent(least)
    tokens_X = counts.tokens_X
    if len(tokens_X) == 0:
        return TopShare(0, 0, math.nan, math.nan, math.nan, math.nan)
    largest_X = np.zeros(len(tokens_X), np.int64)
    np.maximum.at(largest_X, counts.row_P, counts.counts_P)
    share_X, null_X = largest_X / tokens_X, expected_top_share(tokens_X, frequency_N)
    return TopShare(
        token_ids=len(tokens_X),
        tokens=int(tokens_X.sum()),
        mean=float(share_X.mean()),
        mean_null=float(null_X.mean()),
        weighted=float(np.average(share_X, weights=tokens_X)),
        weighted_null=float(np.average(null_X, weights=tokens_X)),
    )


def expected_top_share(tokens_X: np.ndarray, frequency_N: np.ndarray) -> np.ndarray:
    """Return E max_e Binomial(n, p_e) / n for each number n of tokens, by independent experts.

    Args:
        tokens_X: n, at least 1.
        frequency_N: p.

    Returns:
        float64 [X] in [max p, 1]; exact on a logarithmic grid of n, interpolated in between.
    """
    grid = np.unique(np.geomspace(tokens_X.min(), tokens_X.max(), 24).round())
    share = [_expected_largest(n, frequency_N) / n for n in grid]
    return np.asarray(np.interp(np.log(tokens_X), np.log(grid), share))


def _expected_largest(tokens: float, frequency_N: np.ndarray) -> float:
    from scipy.special import betainc

    # E max = sum over m of P(max > m). Below `low` the busiest expert alone makes P = 1, above
    # `high` it is 0; in between P is smooth where there are many m, so that a step may be wide.
    centre = tokens * frequency_N.max()
    reach = 10 * math.sqrt(centre) + 10
    low, high = max(math.floor(centre - reach), 0), min(math.ceil(centre + reach), int(tokens))
    step = max((high - low) / 128, 1)
    m_P = np.arange(low + (step - 1) / 2, high, step)
    tail_PN = betainc(m_P[:, None] + 1, tokens - m_P[:, None], frequency_N)
    return float(low + step * (1 - np.prod(1 - tail_PN, axis=1)).sum())


def token_lists(counts: VocabularyCounts, most: int, least: int = 10) -> pd.DataFrame:
    """Tabulate the token ids that each expert is selected for more than others (J2).

    Args:
        counts: Of all documents.
        most: Token ids per expert.
        least: Tokens that an id must have; also the weight of the prior, in tokens.

    Returns:
        By expert, and the largest z first.
        expert, token_id
        count  tokens of the id that select the expert
        tokens  of the id
        share  VS, count / tokens
        log_odds  that a selection by the id goes to the expert, less those for all other ids,
            both with the expert's share as prior; only values above 0 are listed
        z  log_odds over its standard error, as if tokens were independent: an order, not a test.
            Source: Monroe, Colaresi and Quinn (2008), equations 15 and 16
    """
    total_N = counts.counts_N.astype(np.float64)
    slots = total_N.sum() / max(counts.tokens_X.sum(), 1)
    frequent = counts.frequent(least)
    row_P, expert_P = frequent.row_P, frequent.key_P % frequent.num_experts
    selections_X = np.bincount(row_P, frequent.counts_P, len(frequent.tokens_X))
    weight = least * slots
    prior_P = weight * total_N[expert_P] / max(total_N.sum(), 1)
    here_P = frequent.counts_P + prior_P
    rest_P = total_N[expert_P] - frequent.counts_P + prior_P
    others_P = selections_X[row_P] + weight - here_P
    others_rest_P = total_N.sum() - selections_X[row_P] + weight - rest_P
    # Others have nothing where one expert has all selections: it is listed for no token id.
    ratio_P = np.ones(len(here_P))
    np.divide(here_P * others_rest_P, others_P * rest_P, out=ratio_P, where=others_P > 0)
    odds_P = np.log(ratio_P)
    z_P = odds_P / np.sqrt(1 / here_P + 1 / rest_P)
    order_P = np.lexsort((-z_P, expert_P))
    order_P = order_P[odds_P[order_P] > _ROUNDING]
    begin_P = np.searchsorted(expert_P[order_P], expert_P[order_P])
    chosen_P = order_P[np.arange(len(order_P)) - begin_P < most]
    tokens_P = frequent.tokens_X[row_P]
    return pd.DataFrame(
        {
            "expert": expert_P[chosen_P],
            "token_id": frequent.token_ids_X[row_P][chosen_P],
            "count": frequent.counts_P[chosen_P],
            "tokens": tokens_P[chosen_P],
            "share": (frequent.counts_P / tokens_P)[chosen_P],
            "log_odds": odds_P[chosen_P],
            "z": z_P[chosen_P],
        }
    )


def token_recall(
    fitted: VocabularyCounts, evaluated: VocabularyCounts, top_k: int, least: int = 5
) -> TokenRecall:
    """Return how much of the routing a table from token id to k experts foresees (J3).

    Args:
        fitted: Of half of the documents.
        evaluated: Of the other half.
        top_k: k experts are foreseen, a token id's most frequent ones.
        least: Tokens that an id must have in `fitted`; all others, and ties, get the experts
            most frequent in all, and of those that are as frequent the first.
    """
    selected, fitted_N = evaluated.counts_N.sum(), fitted.counts_N
    if selected == 0 or fitted_N.sum() == 0:
        return TokenRecall(math.nan, math.nan, math.nan)
    usual_N = np.argsort(-fitted_N, kind="stable")
    usual_K = usual_N[:top_k]
    # Below 1, so that it decides between experts that a token id selects equally often.
    tie_N = np.empty(len(usual_N))
    tie_N[usual_N] = np.arange(len(usual_N), 0, -1) / (len(usual_N) + 1)
    known_X = np.intersect1d(
        fitted.frequent(least).token_ids_X, evaluated.token_ids_X, assume_unique=True
    )
    unknown_N, hits = evaluated.counts_N, 0
    for start in range(0, len(known_X), _BLOCK):
        block_B = known_X[start : start + _BLOCK]
        score_BN, counts_BN = fitted.dense(block_B) + tie_N, evaluated.dense(block_B)
        foreseen_BK = np.argpartition(-score_BN, top_k - 1, axis=1)[:, :top_k]
        hits += int(np.take_along_axis(counts_BN, foreseen_BK, axis=1).sum())
        unknown_N = unknown_N - counts_BN.sum(axis=0)
    return TokenRecall(
        recall=float((hits + unknown_N[usual_K].sum()) / selected),
        null=float(evaluated.counts_N[usual_K].sum() / selected),
        known=float(1 - unknown_N.sum() / selected),
    )
