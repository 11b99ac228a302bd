"""F4, F6: experts and right answers, within subjects.

Subjects differ both in accuracy and in the experts they use, so only documents of the same subject
are compared. Documents are the units: tokens of one are not independent. Even so this is no
evidence of a cause: long or odd questions are both harder and routed otherwise.

Of very many documents several may share a row, of which is known how many were answered rightly.
Rows then count as often as they have documents with an answer; what `within` subjects compares
are rows of more right answers with rows of fewer.

Shape suffixes: C documents, S subjects, N experts of a layer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from moe_probe.analysis.metrics.grouping import sums_by_label, within_groups
from moe_probe.analysis.metrics.permuted_answers import permuted_p_values
from moe_probe.analysis.statistics.undefined import positive


def correctness_table(
    counts_CN: np.ndarray,
    tokens_C: np.ndarray,
    subject_C: np.ndarray,
    answered_C: np.ndarray,
    right_C: np.ndarray,
) -> pd.DataFrame:
    """Tabulate how much more correctly answered documents select each expert (F4).

    The difference in mean selection frequency p = c / n between correct and incorrect documents
    of a subject, averaged over subjects with the weights of Cochran, Mantel and Haenszel,
    C1 C0 / (C1 + C0). Its variance is that under permutation of the answers within subjects.

    Args:
        counts_CN: Selections of each expert in each document, [C, N].
        tokens_C: Tokens of each document; those without are left out.
        subject_C: Index of each document's subject.
        answered_C: Documents of the row, 1 if it is one, that are known to be right or wrong;
            rows with none are left out.
        right_C: How many of these are right.

    Returns:
        expert  index in the layer
        difference  frequency in correct less that in incorrect documents, in [-1, 1]
        standard_error  of the difference, if there is none
        z  difference over standard error; near N(0, 1) by chance, but with longer tails for an
            expert that few documents use and where few answers are right or few are wrong
        p_value  two-sided, of `permuted_p_values`, which knows these tails; to be replaced by a
            q-value over all layers
        All are null where no subject has both answers, and z where no document differs.
        Source: Mantel (1963), the extended test for mean scores.
    """
    used_C = (tokens_C > 0) & (answered_C > 0)
    frequency_CN = counts_CN[used_C] / tokens_C[used_C, None]
    within = _compare(frequency_CN, subject_C[used_C], answered_C[used_C], right_C[used_C])
    return within.table("difference")


def margin_table(
    counts_CN: np.ndarray, tokens_C: np.ndarray, subject_C: np.ndarray, margin_C: np.ndarray
) -> pd.DataFrame:
    """Tabulate how selection frequencies change with the margin of the answer (F4).

    The slope of p = c / n over documents of one subject, with the margin in the place of right and
    wrong: the same test, with more to say of answers that were close or clear.

    Args:
        counts_CN, tokens_C, subject_C: As in `correctness_table`.
        margin_C: Of each document, in nats; those of NaN are left out.

    Returns:
        expert  index in the layer
        slope  change of the frequency per nat of margin, within subjects, by least squares
        standard_error  of the slope, if there is none
        z, p_value  as in `correctness_table`
        All are null where margins vary in no subject, and z where no document differs.
    """
    used_C = (tokens_C > 0) & ~np.isnan(margin_C)
    frequency_CN = counts_CN[used_C] / tokens_C[used_C, None]
    within = _compare(frequency_CN, subject_C[used_C], np.ones(used_C.sum()), margin_C[used_C])
    return within.table("slope")


def exposure_table(
    counts_CN: np.ndarray,
    tokens_C: np.ndarray,
    subject_C: np.ndarray,
    answered_C: np.ndarray,
    right_C: np.ndarray,
    least: float = 0.0,
) -> pd.DataFrame:
    """Tabulate the accuracy of documents that use each expert and of those that do not (F6).

    Args:
        counts_CN, tokens_C, subject_C, answered_C, right_C: As in `correctness_table`.
        least: A document uses an expert if a greater share of its tokens selects it; 0: if any
            token does.

    Returns:
        expert  index in the layer
        exposed  documents that use it
        accuracy_exposed, accuracy_unexposed  share of correct documents; null without any
        difference  the first less the second, over all subjects: mixed with what subjects are
        difference_within  the same between documents of one subject, averaged over subjects with
            weights as in `correctness_table`; null where use varies in no subject
        z, p_value  of the latter, as in `correctness_table`
    """
    used_C = (tokens_C > 0) & (answered_C > 0)
    exposed_CN = (counts_CN[used_C] > least * tokens_C[used_C, None]).astype(np.float64)
    answered_C, right_C = answered_C[used_C], right_C[used_C]
    within = _compare(exposed_CN, subject_C[used_C], answered_C, right_C)
    exposed_N, right_N = answered_C @ exposed_CN, right_C @ exposed_CN
    unexposed_N, other_N = answered_C.sum() - exposed_N, right_C.sum() - right_N
    accuracy_N = right_N / positive(exposed_N)
    others_N = other_N / positive(unexposed_N)
    return pd.DataFrame(
        {
            "expert": np.arange(counts_CN.shape[1]),
            "exposed": exposed_N.astype(np.int64),
            "accuracy_exposed": accuracy_N,
            "accuracy_unexposed": others_N,
            "difference": accuracy_N - others_N,
            "difference_within": within.product_N / positive(within.square_N),
            "z": within.z_N,
            "p_value": within.p_value_N,
        }
    )


@dataclass(frozen=True)
class _Within:
    """Sums over documents, each value less its subject's mean."""

    product_N: np.ndarray
    """Of value x answer."""
    square_N: np.ndarray
    """Of value squared."""
    answers: float
    """Of answer squared, which is sum_S C1 C0 / (C1 + C0) where every row is one document."""
    variance_N: np.ndarray
    """Of `product_N` under permutation of the answers within subjects."""
    z_N: np.ndarray
    """`product_N` over its standard deviation."""
    p_value_N: np.ndarray

    def table(self, change: str) -> pd.DataFrame:
        """Tabulate experts; `change` names the column of what a unit of the answer changes."""
        scale = self.answers if self.answers > 0 else np.nan
        return pd.DataFrame(
            {
                "expert": np.arange(len(self.z_N)),
                change: self.product_N / scale,
                "standard_error": np.sqrt(self.variance_N) / scale,
                "z": self.z_N,
                "p_value": self.p_value_N,
            }
        )


def _compare(
    value_CN: np.ndarray, subject_C: np.ndarray, answered_C: np.ndarray, right_C: np.ndarray
) -> _Within:
    used, subject_C = np.unique(subject_C, return_inverse=True)
    groups = (subject_C, len(used), answered_C)
    value_CN = within_groups(value_CN, *groups)
    answer_C = within_groups((right_C / answered_C)[:, None], *groups)[:, 0]
    square_SN = sums_by_label(value_CN**2, *groups)
    answer_S = np.bincount(subject_C, answered_C * answer_C**2, minlength=len(used))
    free_S = np.maximum(np.bincount(subject_C, minlength=len(used)) - 1, 1)
    weighted_CN = answered_C[:, None] * value_CN
    product_N, variance_N = answer_C @ weighted_CN, (answer_S / free_S) @ square_SN
    z_N = np.asarray(product_N / np.sqrt(positive(variance_N)))
    return _Within(
        product_N=product_N,
        square_N=square_SN.sum(axis=0),
        answers=float(answer_S.sum()),
        variance_N=variance_N,
        z_N=z_N,
        p_value_N=permuted_p_values(z_N, weighted_CN, answer_C, subject_C, len(used)),
    )
