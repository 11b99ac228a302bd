"""E1-E3: which experts each subject uses, and by how much more than the others.

Frequencies are those of a subject's tokens; a subject without tokens is NaN everywhere. The unit
of noise is the document, which design effects stand for.

Shape suffixes: S subjects, N experts of a layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.special import erfc

from moe_probe.analysis.statistics.set_sizes import SetSizes
from moe_probe.analysis.statistics.undefined import positive

LEAST_DOCUMENTS = 30
"""Documents below which a subject's log-odds are not given."""


def subject_frequency(counts_SN: np.ndarray, tokens_S: np.ndarray) -> np.ndarray:
    """Return p_e|S = c_eS / T_S, the domain specialisation of OLMoE.

    It says how likely the subject's tokens are to select the expert, not how likely the expert's
    tokens are of the subject; that is `purity`. Counts of first choices give the top-1 variant.

    Args:
        counts_SN: Selections by subject, [S, N].
        tokens_S: T_S, tokens of each subject.

    Returns:
        float64 [S, N] in [0, 1], summing to k over a subject. Null: `frequency_null`.
        Source: OLMoE (2409.02060), equation 7.
    """
    return np.asarray(counts_SN / positive(tokens_S)[:, None])


def frequency_null(
    num_experts: int, sizes: SetSizes, tokens_S: np.ndarray, deff_S: np.ndarray | float = 1.0
) -> tuple[float, np.ndarray]:
    """Return mean and sd of `subject_frequency` if every token chose its experts at random.

    Args:
        num_experts: N.
        sizes: How many experts a token selects.
        tokens_S: T_S.
        deff_S: Design effect of each subject: documents are not independent tokens.

    Returns:
        p0 = k/N and sqrt(p0 (1 - p0) deff_S / T_S), the latter float64 [S], NaN without tokens.
    """
    fair = sizes.mean_k / num_experts
    variance = fair * (1 - sizes.null_k / num_experts)
    return fair, np.sqrt(variance * deff_S / positive(tokens_S))


def purity(counts_SN: np.ndarray, tokens_S: np.ndarray) -> np.ndarray:
    """Return P(S|e) = p_e|S / sum of p_e over subjects: where an expert's use comes from.

    All subjects weigh the same, else those with the most tokens would win.

    Returns:
        float64 [S, N] in [0, 1], summing to 1 over subjects; NaN for an expert never selected.
        Fair value 1 / number of subjects with tokens.
    """
    frequency_SN = subject_frequency(counts_SN, tokens_S)
    total_N = np.where(tokens_S[:, None] > 0, frequency_SN, 0.0).sum(axis=0)
    return np.asarray(frequency_SN / positive(total_N))


def lift(counts_SN: np.ndarray, tokens_S: np.ndarray) -> np.ndarray:
    """Return p_e|S / p_e|others, where the others are all subjects but S.

    Returns:
        float64 [S, N], not negative, 1 where the subject is like the others; NaN where they never
        select the expert: there see `log_odds`.
    """
    rest_SN = subject_frequency(counts_SN.sum(axis=0) - counts_SN, tokens_S.sum() - tokens_S)
    frequency_SN = subject_frequency(counts_SN, tokens_S)
    return np.asarray(frequency_SN / positive(rest_SN))


def log_odds(
    counts_SN: np.ndarray, deff_SN: np.ndarray | float = 1.0, prior: float = 0.01
) -> tuple[np.ndarray, np.ndarray]:
    """Return the log-odds of an expert in a subject against the others, and its z.

    Both sides get prior counts a_e, a small share of all selections in their proportions. So a
    rare expert, whose lift explodes, is drawn towards 0.

        delta = ln (c_eS + a_e) / (A_S + a - c_eS - a_e), less the same of the others
        z = delta / sqrt(deff_eS (f_S / (c_eS + a_e) + f_others / (c_e,others + a_e)))

    with a the sum of the a_e and f_S = A_S / (A_S + a), the part of a side's counts that is not
    prior: only that part varies. Without f, which is not in the source, z of a small subject would
    vary too little.

    Args:
        counts_SN: Selections by subject, [S, N].
        deff_SN: Design effects, [S, 1] or [S, N]: where experts are used in bursts, one value for
            all makes z of some several times too large.
        prior: Prior counts as a share of all selections; a_e = prior c_e.

    Returns:
        delta in nats and z, float64 [S, N]; NaN for an expert never selected, for one that has
        every selection of a side, and where a side has no selections. Null: z is N(0, 1).
        Source: Monroe, Colaresi and Quinn (2008), "Fightin' words".
    """
    total_N = counts_SN.sum(axis=0)
    prior_N = prior * total_N
    inside_SN, outside_SN = counts_SN + prior_N, total_N - counts_SN + prior_N
    size_S = counts_SN.sum(axis=1)
    compared_S1 = ((size_S > 0) & (size_S < total_N.sum()))[:, None]
    delta_SN = _logit(inside_SN, compared_S1) - _logit(outside_SN, compared_S1)
    variance_SN = _variance(inside_SN, prior_N) + _variance(outside_SN, prior_N)
    return delta_SN, delta_SN / np.sqrt(variance_SN * positive(deff_SN))


def two_sided_p(z: np.ndarray) -> np.ndarray:
    """Return P(|Z| >= |z|) of a standard normal; NaN where z is."""
    return np.asarray(erfc(np.abs(z) / math.sqrt(2)))


def subjects_table(
    counts_SN: np.ndarray,
    tokens_S: np.ndarray,
    documents_S: np.ndarray,
    deff_SN: np.ndarray,
    subjects: Sequence[str],
) -> pd.DataFrame:
    """Tabulate every expert and subject of one layer, experts first.

    Args:
        counts_SN: Selections by subject, int64 [S, N].
        tokens_S: T_S.
        documents_S: Documents of each subject; with fewer than 30 its inference is null.
        deff_SN: Design effects, [S, 1] or [S, N]; null where unknown, and then z is.
        subjects: Names, distinct.

    Returns:
        expert  index in the layer
        subject  name, categorical in the order given
        count  selections
        frequency  p_e|S, share of the subject's tokens that select the expert
        lift  p_e|S over that of all other subjects; null where they never select it
        log_odds  in nats, drawn towards 0; null in small subjects
        z  log_odds over its standard error; null in small subjects
        p_value  two-sided, to be replaced by a q-value over all layers
    """
    num_subjects, num_experts = counts_SN.shape
    blank_S1 = (documents_S < LEAST_DOCUMENTS)[:, None]
    delta_SN, z_SN = (np.where(blank_S1, np.nan, part) for part in log_odds(counts_SN, deff_SN))
    code = np.tile(np.arange(num_subjects), num_experts)
    return pd.DataFrame(
        {
            "expert": np.repeat(np.arange(num_experts), num_subjects),
            "subject": pd.Categorical.from_codes(code, categories=pd.Index(subjects)),
            "count": counts_SN.T.ravel(),
            "frequency": subject_frequency(counts_SN, tokens_S).T.ravel(),
            "lift": lift(counts_SN, tokens_S).T.ravel(),
            "log_odds": delta_SN.T.ravel(),
            "z": z_SN.T.ravel(),
            "p_value": two_sided_p(z_SN).T.ravel(),
        }
    )


def _variance(side_SN: np.ndarray, prior_N: np.ndarray) -> np.ndarray:
    """Return f / x, the variance of ln x where tokens are independent, [S, N]."""
    varying_S1 = 1 - prior_N.sum() / positive(side_SN.sum(axis=1, keepdims=True))
    return np.asarray(varying_S1 / positive(side_SN))


def _logit(side_SN: np.ndarray, compared_S1: np.ndarray) -> np.ndarray:
    """Return ln x / (sum of x - x); NaN where it is infinite or nothing is compared."""
    others_SN = side_SN.sum(axis=1, keepdims=True) - side_SN
    known_SN = (side_SN > 0) & (others_SN > 0) & compared_S1
    blank_SN = np.full(side_SN.shape, np.nan)
    odds_SN = np.divide(side_SN, others_SN, out=blank_SN, where=known_SN)
    return np.asarray(np.log(odds_SN, out=odds_SN, where=known_SN))
