"""What one scan of all traces leaves.

Shape suffixes: C clusters of a trace, N experts of a layer, B replicates, S subjects in common.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from moe_probe.analysis.accumulators.counts import Counts
from moe_probe.analysis.comparison.agreement_sums import AgreementSums
from moe_probe.analysis.comparison.documents import Pairs
from moe_probe.analysis.comparison.sides import CompareSettings, Side
from moe_probe.analysis.quality import Check, failures
from moe_probe.analysis.statistics.clusters import ClusterMoments


@dataclass(frozen=True)
class SideLayer:
    """One layer of one trace: what its documents say."""

    moments: ClusterMoments
    replicates_BN: np.ndarray


@dataclass
class SideSums:
    """What the scan leaves of one trace."""

    side: Side
    counts: Counts
    subjects: tuple[str, ...]
    """Names of its groups."""
    groups_C: np.ndarray
    """Group of each cluster."""
    documents: int
    """Documents with counted tokens, prefixes left out."""
    checks: list[Check] = field(default_factory=list)
    repeated: dict[int, float] = field(default_factory=dict)
    """Share of repeated prompt tokens that chose the same experts, by layer; empty if unknown."""
    layers: dict[int, SideLayer] = field(default_factory=dict)
    """Empty where only counts were kept."""

    @property
    def failed(self) -> list[Check]:
        """Quality checks that failed: while there is one, the numbers cannot be trusted."""
        return failures(self.checks)


@dataclass(frozen=True)
class PairLayer:
    """One layer of the reference and of another trace."""

    variance_N: np.ndarray
    """Of the difference of relative loads."""
    freedom: float
    subject_noise_S: np.ndarray
    """Divergence from noise alone, in bits, of each common subject."""


@dataclass
class PairSums:
    """What the scan leaves of the reference and another trace."""

    other: SideSums
    corresponds: bool
    """Whether layers and experts are those of the reference."""
    documents: Pairs
    """Clusters of both."""
    subjects: list[tuple[int, int]]
    """Numbers of common subjects in both."""
    paired_documents: int = 0
    """Documents of both, prefixes left out."""
    layers: dict[int, PairLayer] = field(default_factory=dict)
    """Empty where either has no documents."""
    agreement: AgreementSums | None = None
    """None where the traces have no text in common."""


@dataclass(frozen=True)
class Gathered:
    """All that tables are made of."""

    settings: CompareSettings
    reference: SideSums
    pairs: list[PairSums]

    @property
    def sides(self) -> list[SideSums]:
        """The reference first."""
        return [self.reference, *(pair.other for pair in self.pairs)]
