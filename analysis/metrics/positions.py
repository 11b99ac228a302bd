"""Group J, positions: experts that depend on where in its sequence a token stands.

Bin 0 is position 0, where many models attend to a first token that means nothing; bin b above it
is positions 2^(b-1) to 2^b - 1. Position 0 has its own row here, and belongs in no headline.

Shape suffixes: B position bins, C clusters (documents), N experts of a layer; 2 a bin and the rest.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from moe_probe.analysis.metrics.frequency import relative_load
from moe_probe.analysis.metrics.information import mutual_information
from moe_probe.analysis.statistics.clusters import likeness
from moe_probe.analysis.statistics.random_sets import divergence_bias
from moe_probe.analysis.statistics.undefined import positive

MOSTLY = 0.5
"""An expert is bound to position 0 if more than this share of its selections is there."""


def positions_table(
    position_counts_BN: np.ndarray,
    position_tokens_B: np.ndarray,
    top_k: float,
    deff_B: np.ndarray | float,
) -> pd.DataFrame:
    """Tabulate each bin of positions against all others.

    In a benchmark position and segment go together: what differs may be either.

    Args:
        position_counts_BN: Selections by position, int64.
        position_tokens_B: Tokens by position, int64.
        top_k: k.
        deff_B: Design effect of each bin beside the rest, `position_deffs`, or one for all.

    Returns:
        One row per bin that has tokens.
        first, last  positions of the bin
        tokens
        max_load  largest relative load r in the bin; fair value 1, at most N/k
        busiest  the expert that has it
        divergence  Jensen-Shannon divergence between the bin's assignment shares and those of
            the rest, both weighing the same, in bits, [0, 1]; null where there is no rest
        divergence_null  what two samples of the same shares show: deff (N - k) / 8
            (1/A + 1/A_rest) nats, in bits, at most 1; N of experts that something selects
        selection_share  share of the layer's selections that are in the bin; null without any
    """
    first_B, last_B = position_bins(len(position_tokens_B))
    rest_BN = position_counts_BN.sum(axis=0) - position_counts_BN
    load_BN = relative_load(position_counts_BN)
    halves_B2N = np.stack([position_counts_BN, rest_BN], axis=1)
    selected_B2 = halves_B2N.sum(axis=2).astype(np.float64)
    selected_B2[(selected_B2 == 0).any(axis=1)] = np.nan
    used = int(position_counts_BN.any(axis=0).sum())
    bias_B = divergence_bias(used, top_k, selected_B2[:, 0], selected_B2[:, 1])
    divergence_B = mutual_information(halves_B2N, equal_weights=True)
    table = pd.DataFrame(
        {
            "first": first_B,
            "last": last_B,
            "tokens": position_tokens_B,
            "max_load": load_BN.max(axis=1),
            "busiest": position_counts_BN.argmax(axis=1),
            "divergence": np.where(np.isnan(bias_B), np.nan, divergence_B),
            "divergence_null": np.minimum(deff_B * bias_B, 1.0),
            "selection_share": position_counts_BN.sum(axis=1) / positive(position_counts_BN.sum()),
        }
    )
    return table[position_tokens_B > 0].reset_index(drop=True)


def tokens_apart(tokens_CB: np.ndarray) -> np.ndarray:
    """Return how differently documents are in each bin and in the rest of the positions.

    sum over documents of (n/T - n'/T')^2, over 1/T + 1/T', with n, n' their tokens here and there.

    Args:
        tokens_CB: Tokens of each document by position.

    Returns:
        float64 [B], 0 or more: 0 where every document has as much of both, 1 where every token is
        of a document of its own; NaN where one side has no tokens.
    """
    here_CB = tokens_CB.astype(np.float64)
    rest_CB = here_CB.sum(axis=1, keepdims=True) - here_CB
    here_B, rest_B = positive(here_CB.sum(axis=0)), positive(rest_CB.sum(axis=0))
    apart_B = ((here_CB / here_B - rest_CB / rest_B) ** 2).sum(axis=0)
    return np.asarray(apart_B / (1 / here_B + 1 / rest_B))


def position_deffs(apart_B: np.ndarray, deff: float, mean_tokens: float) -> np.ndarray:
    """Return the design effect of a bin's shares less those of the rest, 1 + rho (x - 1).

    Documents are in both, so most of what they have of their own cancels; rho is their `likeness`.

    Args:
        apart_B: x, `tokens_apart`.
        deff: Design effect of all tokens.
        mean_tokens: sum n^2 / sum n over the documents.

    Returns:
        float64 [B], not negative; NaN where x is.
    """
    return np.asarray(1 + likeness(deff, mean_tokens) * (apart_B - 1))


def first_position_experts(
    position_counts_BN: np.ndarray, position_tokens_B: np.ndarray
) -> pd.DataFrame:
    """Tabulate the experts that get most of their selections at position 0.

    Returns:
        The largest share first.
        expert
        count  selections at position 0
        share  of the expert's selections, above `MOSTLY`
        share_null  share of all tokens that stand at position 0
    """
    counts_N = position_counts_BN.sum(axis=0)
    share_N = position_counts_BN[0] / np.where(counts_N > 0, counts_N, np.nan)
    bound = np.flatnonzero(share_N > MOSTLY)
    bound = bound[np.argsort(-share_N[bound], kind="stable")]
    return pd.DataFrame(
        {
            "expert": bound,
            "count": position_counts_BN[0, bound],
            "share": share_N[bound],
            "share_null": position_tokens_B[0] / max(position_tokens_B.sum(), 1),
        }
    )


def position_bins(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the first and last positions of bins 0, 1, 2-3, 4-7, ...: int64 [B] each."""
    first_B = (1 << np.arange(number)) >> 1
    return first_B, np.maximum((1 << np.arange(number)) - 1, 0)
