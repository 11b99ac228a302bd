"""How an undefined value is made: NaN, neither 0 nor infinite, and without a warning."""

from __future__ import annotations

import numpy as np


def positive(values: np.ndarray | float) -> np.ndarray:
    """Return the values as float64, NaN where they are not above 0: what to divide by."""
    values = np.asarray(values, np.float64)
    return np.where(values > 0, values, np.nan)
