"""Group H: how much a token's experts are those of the tokens before it, inside one document.

Nulls: N0 draws k of N experts uniformly; N1 ("own") draws each expert at its own frequency,
whatever came before.

Shape suffixes: S subjects, X lags, N experts of a layer, K slots, T tokens, D documents,
W window lengths, P selections; 5 sums over pairs of tokens, in the order of `SUMS`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from moe_probe.analysis.statistics.undefined import positive

SUMS = ("pairs", "overlap", "any_overlap", "first_choice", "same_set")
"""Over pairs of tokens, t and t - lag: their number, the sum of |S_t and S_(t-lag)|, and the
pairs with any common expert, with equal first slots and with equal sets."""


def excess(ratio: np.ndarray, null: np.ndarray) -> np.ndarray:
    """Return (ratio - null) / (1 - null), locality beyond a null on a scale that fits any k, N.

    Returns:
        float64 in (-inf, 1]; NaN where the null is 1.
    """
    room = np.where(np.asarray(null) < 1, 1 - np.asarray(null), np.nan)
    return np.asarray((ratio - null) / room)


def overlap_null_own(counts_SN: np.ndarray, tokens_S: np.ndarray) -> np.ndarray:
    """Return sum p_e^2 / k, the overlap ratio under N1, with k the mean set size.

    Args:
        counts_SN: Selections, [..., N].
        tokens_S: Tokens, [...].

    Returns:
        float64 [...] in [k/N, 1]; NaN where nothing was selected.
    """
    # The same as sum c^2 / (A T).
    whole_S = counts_SN.sum(axis=-1) * np.asarray(tokens_S, np.float64)
    square_S = (counts_SN.astype(np.float64) ** 2).sum(axis=-1)
    return np.asarray(square_S / np.where(whole_S > 0, whole_S, np.nan))


def first_choice_nulls(first_N: np.ndarray, tokens: int) -> tuple[float, float]:
    """Return how often two tokens agree in their first choice under N0 and under N1.

    (f / T)^2 / N and sum (f_e / T)^2, with f the tokens that have a first choice: 1 / N under N0
    where all have.

    Args:
        first_N: Tokens whose first choice each expert is, f_e.
        tokens: T.

    Returns:
        Both in [0, 1]; NaN without tokens.
    """
    share_N = first_N / tokens if tokens else np.full(len(first_N), np.nan)
    return float(share_N.sum() ** 2 / len(first_N)), float((share_N**2).sum())


def repeats_table(
    subjects: Sequence[str],
    lags: Sequence[int],
    overlaps_SX5: np.ndarray,
    other_token_overlaps_SX5: np.ndarray | None,
    counts_SN: np.ndarray,
    tokens_S: np.ndarray,
) -> pd.DataFrame:
    """Tabulate how often tokens repeat the experts of the token `lag` before them.

    Args:
        subjects: S names.
        lags: X distances in tokens.
        overlaps_SX5: int64, the sums named in `SUMS`.
        other_token_overlaps_SX5: The same over pairs of two different token ids; None where the
            trace has no token ids.
        counts_SN: Selections.
        tokens_S: Tokens.

    Returns:
        One row per lag and subject, and first of each lag one over all subjects. Shares are in
        [0, 1], and so are ratios where no slot is empty; all are null without pairs, overlap_ratio
        also without selections.
        subject  "" for all
        lag  in tokens
        pairs  of tokens of one document
        first_choice  share of pairs with equal first slots; N0: 1/N. Source: Mixtral
            (2401.04088), table 5
        any_overlap  share of pairs with any common expert; N0: `random_sets.any_shared`, N1:
            `random_sets.own_rate_any`
        overlap_ratio  mean number of common experts over the mean set size
        same_set  share of pairs with the same set; N0: 1 / C(N, k)
        overlap_null, overlap_null_own  overlap_ratio under N0, k/N, and under N1
        excess  of overlap_ratio over overlap_null_own, at most 1
        other_token_pairs, other_token_first_choice, ...  the same over pairs of different ids
    """
    counts_SN = np.concatenate([counts_SN.sum(axis=0, keepdims=True), counts_SN])
    tokens_S = np.concatenate([[tokens_S.sum()], tokens_S])
    mean_k_S = counts_SN.sum(axis=1) / np.where(tokens_S > 0, tokens_S, np.nan)
    own_S = overlap_null_own(counts_SN, tokens_S)
    if other_token_overlaps_SX5 is None:
        other_token_overlaps_SX5 = np.zeros_like(overlaps_SX5)
    tables = []
    for place, lag in enumerate(lags):
        columns: dict[str, Any] = {"subject": ["", *subjects], "lag": lag}
        columns |= _rates(overlaps_SX5[:, place], mean_k_S)
        columns |= {"overlap_null": mean_k_S / counts_SN.shape[1], "overlap_null_own": own_S}
        columns["excess"] = excess(columns["overlap_ratio"], own_S)
        other = _rates(other_token_overlaps_SX5[:, place], mean_k_S)
        other["excess"] = excess(other["overlap_ratio"], own_S)
        columns |= {f"other_token_{name}": values_S for name, values_S in other.items()}
        tables.append(pd.DataFrame(columns))
    return pd.concat(tables, ignore_index=True)


def distinct_experts(
    ids_TK: np.ndarray, start_T: np.ndarray, num_experts: int, windows: Sequence[int]
) -> Iterator[np.ndarray]:
    """Yield for each length how many experts the window that ends with each token selects.

    Args:
        ids_TK: Selected experts, documents one after the other; ids of num_experts and above
            are empty slots.
        start_T: The first token of each token's document, ascending.
        num_experts: N.
        windows: Lengths, in tokens.

    Yields:
        int64 [T] in experts; -1 where the document has fewer tokens up to there.
    """
    slot_P = np.flatnonzero(ids_TK.ravel() < num_experts)
    expert_P = ids_TK.ravel()[slot_P]
    order_P = np.argsort(expert_P, kind="stable")
    expert_P, token_P = expert_P[order_P], slot_P[order_P] // ids_TK.shape[1]
    tokens = len(ids_TK)
    end_T = np.searchsorted(start_T, start_T, side="right")
    # A selection stands for its expert until the next one does, or the document ends.
    until_P = end_T[token_P]
    again_P = np.flatnonzero(np.diff(expert_P) == 0)
    until_P[again_P] = np.minimum(until_P[again_P], token_P[again_P + 1])
    enters_T = np.bincount(token_P, minlength=tokens)
    at_T = np.arange(tokens) - start_T
    for window in windows:
        leaves_T = np.bincount(np.minimum(until_P, token_P + window), minlength=tokens)[:tokens]
        yield np.where(at_T >= window - 1, np.cumsum(enters_T - leaves_T), -1)


def _rates(sums_S5: np.ndarray, mean_k_S: np.ndarray) -> dict[str, np.ndarray]:
    sums_S5 = np.concatenate([sums_S5.sum(axis=0, keepdims=True), sums_S5])
    sums = dict(zip(SUMS, sums_S5.T, strict=True))
    pairs_S = positive(sums["pairs"])
    return {
        "pairs": sums["pairs"],
        "first_choice": sums["first_choice"] / pairs_S,
        "any_overlap": sums["any_overlap"] / pairs_S,
        "overlap_ratio": sums["overlap"] / pairs_S / positive(mean_k_S),
        "same_set": sums["same_set"] / pairs_S,
    }
