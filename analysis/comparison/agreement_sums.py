"""What is added up over aligned tokens of two traces.

Shape suffixes: L layers, K slots, N experts of a layer, O octaves of positions, C clusters of the
reference, H bins of margins; 2 is equal and different, or both traces.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moe_probe.analysis.metrics.confidence import BINS
from moe_probe.trace import LayerSpec

OCTAVES = 32
"""Positions 0, 1, 2 to 3, 4 to 7, ...: more than a sequence can have."""


@dataclass
class LayerAgreement:
    """Sums of one layer; each token counts as often as the rule says."""

    overlap_C: np.ndarray
    """Sum of the overlap ratio, by document of the reference."""
    equal_C: np.ndarray
    """Tokens with equal sets, likewise."""
    counts_2N: np.ndarray
    """Selections of the aligned tokens in both traces."""
    lost_K: np.ndarray
    """Selections of each of the reference's slots that the other run lacks."""
    octaves_2O: np.ndarray
    """Sum of the overlap ratio, and tokens with equal sets, by position."""
    margins_2H: np.ndarray
    """Histogram of margins of tokens with equal and with different sets."""
    first_filled_3: np.ndarray
    """Tokens by the number of traces that fill the first slot, 0 to 2."""
    size: float = 0.0
    """Sum of the harmonic mean of both sets' sizes."""
    nothing: int = 0
    """Tokens that select no expert in either trace."""
    first_choice: int = 0
    """Tokens whose first slots are equal."""
    rank_overlap: float = 0.0
    weight_difference: float = 0.0
    weighed: int = 0
    """Tokens that have gate weights in both traces."""


@dataclass
class AgreementSums:
    """What the aligned tokens of two traces have in common."""

    layers: dict[int, LayerAgreement]
    tokens_C: np.ndarray
    tokens_O: np.ndarray
    first_L: np.ndarray
    """Tokens by the first layer that differs; those that differ in none are in the last entry."""
    number_L: np.ndarray
    """Tokens by the number of layers that differ, 0 to L."""
    has_ranks: bool
    """Whether the slots of both traces are ranks of the same kind."""
    has_weights: bool
    margins_of: str
    """Label of the trace that the margins are of; empty without any."""

    @property
    def tokens(self) -> int:
        return int(self.tokens_C.sum())


def nothing(spec: LayerSpec, clusters: int) -> LayerAgreement:
    """Return the sums of one layer before anything is added."""
    return LayerAgreement(
        overlap_C=np.zeros(clusters),
        equal_C=np.zeros(clusters),
        counts_2N=np.zeros((2, spec.num_experts), np.int64),
        lost_K=np.zeros(spec.top_k, np.int64),
        octaves_2O=np.zeros((2, OCTAVES)),
        margins_2H=np.zeros((2, BINS), np.int64),
        first_filled_3=np.zeros(3, np.int64),
    )
