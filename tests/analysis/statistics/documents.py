"""Random documents whose tokens route alike, and their moments.

Shape suffixes: C documents, N experts, S subjects.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moe_probe.analysis.statistics.clusters import ClusterMoments


@dataclass(frozen=True)
class Documents:
    """Top-1 selections of each document."""

    counts_CN: np.ndarray
    tokens_C: np.ndarray

    def moments(self, subject_C: np.ndarray | None = None) -> ClusterMoments:
        """Sum over the documents of each subject, one by one."""
        subject_C = np.zeros(len(self.tokens_C), int) if subject_C is None else subject_C
        subjects = range(int(subject_C.max()) + 1)
        parts = [
            (self.counts_CN[subject_C == s].astype(float), self.tokens_C[subject_C == s])
            for s in subjects
        ]
        return ClusterMoments(
            clusters_S=np.array([len(n_C) for _, n_C in parts]),
            n_S=np.array([float(n_C.sum()) for _, n_C in parts]),
            n_square_S=np.array([float((n_C**2).sum()) for _, n_C in parts]),
            n_power_SP=np.array([[(n_C**p).sum() for p in (3.0, 4.0, 5.0)] for _, n_C in parts]),
            c_SN=np.stack([c_CN.sum(axis=0) for c_CN, _ in parts]),
            c_square_SN=np.stack([(c_CN**2).sum(axis=0) for c_CN, _ in parts]),
            cn_SN=np.stack([(c_CN * n_C[:, None]).sum(axis=0) for c_CN, n_C in parts]),
        )


def dirichlet_multinomial(
    share_N: np.ndarray, documents: int, concentration: float, rng: np.random.Generator
) -> Documents:
    """Documents of 20 to 119 tokens, each with shares of its own around the common ones."""
    tokens_C = rng.integers(20, 120, documents)
    share_CN = rng.dirichlet(concentration * share_N, documents)
    return Documents(rng.multinomial(tokens_C, share_CN), tokens_C)
