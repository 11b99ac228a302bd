"""Means over layers as a matrix, against a loop over pairs.

Shape suffixes: S subjects.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from moe_probe.analysis.metrics.subject_distance import mean_over_layers

SUBJECTS = ("b", "a", "c")
ROWS = [
    (1, "b", "a", 0.2),
    (1, "b", "c", 0.4),
    (1, "a", "c", 0.1),
    (2, "b", "a", 0.6),
    (2, "b", "c", np.nan),
    (2, "a", "c", 0.3),
]


def table(rows: list[tuple[int, str, str, float]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["layer", "subject", "other", "divergence_bits"])


def test_matrix_is_the_mean_of_known_values() -> None:
    found_SS = mean_over_layers(table(ROWS), SUBJECTS)
    for row, subject in enumerate(SUBJECTS):
        for column, other in enumerate(SUBJECTS):
            known = [v for _, *pair, v in ROWS if {subject, other} == set(pair) and v == v]
            expected = 0.0 if subject == other else float(np.mean(known))
            assert abs(found_SS[row, column] - expected) < 1e-12


def test_a_subject_without_values_is_unknown() -> None:
    rows = [(n, one, two, np.nan if "c" in (one, two) else v) for n, one, two, v in ROWS]
    found_SS = mean_over_layers(table(rows), SUBJECTS)
    assert np.isnan(found_SS[2]).all()
    assert np.isnan(found_SS[:, 2]).all()
    assert found_SS[:2, :2].diagonal().tolist() == [0, 0]


def test_one_subject_has_no_pairs() -> None:
    assert np.isnan(mean_over_layers(table([]), ("a",))).all()
