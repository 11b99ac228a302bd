"""Tables of agreement, token by token: AG1, AG2 and where two runs part.

Only of traces that ran the same text. Shape suffixes: L layers, C documents, K slots, N experts of
a layer, O octaves of positions, H bins of margins.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from moe_probe.analysis.comparison.agreement_sums import AgreementSums
from moe_probe.analysis.comparison.sums import Gathered, PairSums


def agreement_table(found: Gathered) -> pd.DataFrame:
    """Tabulate how often two runs select the same experts for the same token.

    Returns:
        trace, layer  of the compared trace
        tokens  that both traces have after the same context, and that the rule counts
        overlap, overlap_low, overlap_high  common experts over the mean number of both, mean over
            tokens; 95 % interval over documents
        overlap_null, overlap_null_own  of sets as large as these, drawn uniformly, k/N, and at the
            experts' own rates, sum of the two frequencies' products over k. k is the harmonic mean
            of both numbers; tokens that select none in either trace agree
        same_set, same_set_low, same_set_high  share of tokens with equal sets
        first_choice, first_choice_null  share with equal first slots; 1/N where all are filled.
            Null where slots are no ranks
        rank_overlap  rank-biased overlap with p = 0.9; likewise
        weight_difference  share of gate weight that is on other experts or moved between the same;
            null without --capture weights in both traces
        repeated_reference, repeated  share of prompt tokens that a trace has more than once and
            that chose the same set in it: the noise of its engine alone. Null without any
    """
    rows = []
    for pair, sums in agreeing(found):
        for layer in sums.layers:
            repeats = [side.repeated.get(layer, np.nan) for side in (found.reference, pair.other)]
            row = {"trace": pair.other.side.label, "layer": layer, **_layer(sums, layer)}
            rows.append(row | {"repeated_reference": repeats[0], "repeated": repeats[1]})
    return table_of(rows, ["trace", "layer", "tokens", "overlap", "same_set"])


def _layer(sums: AgreementSums, layer: int) -> dict[str, Any]:
    found, tokens = sums.layers[layer], sums.tokens
    num_experts = found.counts_2N.shape[1]
    counts_2N = found.counts_2N.astype(np.float64)
    product = float(np.prod(counts_2N.sum(axis=1)))
    shared = float(counts_2N[0] @ counts_2N[1]) / product if product else 0.0
    neither, _, both = (found.first_filled_3 / tokens).tolist()
    row: dict[str, Any] = {"tokens": tokens}
    for name, sum_C in (("overlap", found.overlap_C), ("same_set", found.equal_C)):
        value, half = ratio_interval(sum_C, sums.tokens_C)
        # A share: the interval of Student's t knows no bounds.
        row |= {name: value, f"{name}_low": max(value - half, 0.0)}
        row[f"{name}_high"] = min(value + half, 1.0)
    ranks = sums.has_ranks
    return row | {
        "overlap_null": (found.nothing + found.size / num_experts) / tokens,
        "overlap_null_own": (found.nothing + found.size * shared) / tokens,
        "first_choice": found.first_choice / tokens if ranks else np.nan,
        "first_choice_null": neither + both / num_experts if ranks else np.nan,
        "rank_overlap": found.rank_overlap / tokens if ranks else np.nan,
        "weight_difference": found.weight_difference / found.weighed if found.weighed else np.nan,
    }


def ratio_interval(sum_C: np.ndarray, tokens_C: np.ndarray) -> tuple[float, float]:
    """Return a mean over tokens, and half the width of its 95 % interval over documents.

    Args:
        sum_C: Sum over each document's tokens.
        tokens_C: Tokens of each; those without any are left out.

    Returns:
        The second is NaN for fewer than two documents.
        Source: Cochran, Sampling Techniques (1977), equation 6.13, with Student's t.
    """
    from scipy.special import stdtrit

    used_C = tokens_C > 0
    sum_C, tokens_C = sum_C[used_C], tokens_C[used_C]
    documents, tokens = len(tokens_C), float(tokens_C.sum())
    value = float(sum_C.sum()) / tokens
    if documents < 2:
        return value, math.nan
    squares = float(((sum_C - value * tokens_C) ** 2).sum())
    error = math.sqrt(documents / (documents - 1) * squares) / tokens
    return value, float(stdtrit(documents - 1, 0.975)) * error


def agreement_subjects(found: Gathered) -> pd.DataFrame:
    """Tabulate the same by subject of the reference: tokens, overlap and same_set alone."""
    rows = []
    group_C = found.reference.groups_C
    for pair, sums in agreeing(found):
        for layer, each in sums.layers.items():
            for number, subject in enumerate(found.reference.subjects):
                own_C = group_C == number
                tokens = int(sums.tokens_C[own_C].sum())
                if tokens:
                    facts = {"trace": pair.other.side.label, "layer": layer, "subject": subject}
                    rows.append(
                        facts
                        | {
                            "tokens": tokens,
                            "overlap": float(each.overlap_C[own_C].sum()) / tokens,
                            "same_set": float(each.equal_C[own_C].sum()) / tokens,
                        }
                    )
    return table_of(rows, ["trace", "layer", "subject"])


def agreement_positions(found: Gathered) -> pd.DataFrame:
    """Tabulate the same by position in the sequence: positions `first` to `last`."""
    rows = []
    for pair, sums in agreeing(found):
        for layer, each in sums.layers.items():
            for octave in np.flatnonzero(sums.tokens_O).tolist():
                tokens = int(sums.tokens_O[octave])
                overlap, same = (each.octaves_2O[:, octave] / tokens).tolist()
                rows.append(
                    {
                        "trace": pair.other.side.label,
                        "layer": layer,
                        "first": (1 << octave) >> 1,
                        "last": (1 << octave) - 1,
                        "tokens": tokens,
                        "overlap": overlap,
                        "same_set": same,
                    }
                )
    return table_of(rows, ["trace", "layer", "first"])


def first_divergence(found: Gathered) -> pd.DataFrame:
    """Tabulate in which layer tokens differ first: early is numeric, late is accumulated.

    Returns:
        trace, layer  of the compared trace; null for tokens that differ in no layer
        tokens, share  whose sets differ in this layer and in none before
    """
    rows = []
    for pair, sums in agreeing(found):
        for layer, tokens in zip([*sums.layers, None], sums.first_L.tolist(), strict=True):
            facts = {"trace": pair.other.side.label, "layer": layer}
            rows.append(facts | {"tokens": tokens, "share": tokens / sums.tokens})
    return table_of(rows, ["trace", "layer", "tokens"]).astype({"layer": "Int64"})


def differing_layers(found: Gathered) -> pd.DataFrame:
    """Tabulate in how many layers the sets of a token differ: `layers`, `tokens`, `share`."""
    rows = []
    for pair, sums in agreeing(found):
        for number, tokens in enumerate(sums.number_L.tolist()):
            facts = {"trace": pair.other.side.label, "layers": number}
            rows.append(facts | {"tokens": tokens, "share": tokens / sums.tokens})
    return table_of(rows, ["trace", "layers", "tokens"])


def agreeing(found: Gathered) -> list[tuple[PairSums, AgreementSums]]:
    """Return the traces that ran some text of the reference's."""
    return [(pair, pair.agreement) for pair in found.pairs if pair.agreement is not None]


def table_of(rows: list[dict[str, Any]], columns: list[str]) -> pd.DataFrame:
    """Return the rows, or a table without any that has the columns all others have too."""
    return pd.DataFrame(rows) if rows else pd.DataFrame(columns=columns)
