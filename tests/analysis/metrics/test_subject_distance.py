"""Matrices of subjects and their mean over layers, against a loop over pairs.

Shape suffixes: L layers, S subjects.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from moe_probe.analysis.metrics.subject_distance import layer_matrices, mean_over_layers

SUBJECTS = ("b", "a", "c")
LAYERS = (1, 2, 5)
ROWS = [
    (1, "b", "a", 0.2),
    (1, "b", "c", 0.4),
    (1, "a", "c", 0.1),
    (2, "b", "a", 0.6),
    (2, "b", "c", np.nan),
    (2, "a", "c", np.nan),
    (5, "b", "a", np.nan),
    (5, "b", "c", np.nan),
    (5, "a", "c", np.nan),
]


def matrices(rows: list[tuple[int, str, str, float]]) -> np.ndarray:
    table = pd.DataFrame(rows, columns=["layer", "subject", "other", "divergence_bits"])
    return layer_matrices(table, LAYERS, SUBJECTS)


def test_a_matrix_has_the_rows_of_its_layer() -> None:
    found_LSS = matrices(ROWS)
    for place, layer in enumerate(LAYERS):
        known = {frozenset(pair): bits for at, *pair, bits in ROWS if at == layer}
        for row, subject in enumerate(SUBJECTS):
            for column, other in enumerate(SUBJECTS):
                lacks = layer == 5 or (layer == 2 and subject == "c")
                wanted = known.get(frozenset((subject, other)), np.nan if lacks else 0.0)
                np.testing.assert_equal(found_LSS[place, row, column], wanted)


def test_pairs_are_averaged_over_the_same_layers() -> None:
    found_SS = mean_over_layers(matrices(ROWS))
    assert found_SS[0, 1] == found_SS[1, 0] == np.mean([0.2, 0.6])
    # Of the first layer alone, c would seem nearer to b than a is, for no reason.
    assert np.isnan(found_SS[2]).all()
    assert np.isnan(found_SS[:, 2]).all()
    assert found_SS.diagonal()[:2].tolist() == [0, 0]


def test_a_subject_without_values_is_unknown() -> None:
    rows = [(n, one, two, np.nan if "c" in (one, two) else v) for n, one, two, v in ROWS]
    found_SS = mean_over_layers(matrices(rows))
    assert np.isnan(found_SS[2]).all()
    assert np.isnan(found_SS[:, 2]).all()
    assert found_SS[:2, :2].diagonal().tolist() == [0, 0]


def test_without_pairs_nothing_is_known() -> None:
    found_LSS = matrices([])
    assert found_LSS.shape == (3, 3, 3)
    assert np.isnan(found_LSS).all()
    assert np.isnan(mean_over_layers(found_LSS)).all()
