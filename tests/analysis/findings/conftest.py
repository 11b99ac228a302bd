"""A layer with one expert of each kind.

Shape suffixes: N experts, D documents.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from tests.analysis.findings.one_layer import (
    BURSTING,
    EXPERTS,
    ORDERED,
    RESERVED,
    STARVED,
    SUBJECTS,
    route,
    tables_of,
)


@pytest.fixture(scope="module")
def planted() -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """One expert of each kind among 16, in 400 documents of ten subjects."""
    subject_D = np.repeat(np.arange(SUBJECTS), 40)
    weight_DN = np.ones((400, EXPERTS))
    weight_DN[:, RESERVED] = np.where(subject_D == 4, 6, 0)
    weight_DN[:, STARVED] = 0.01
    weight_DN[:, ORDERED] = np.where(subject_D < 5, 2, 0)
    weight_DN[:, BURSTING] = np.where(np.random.default_rng(1).random(400) < 0.1, 60, 0)
    return tables_of(route(weight_DN, 2), 7)
