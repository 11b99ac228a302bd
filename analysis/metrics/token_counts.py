"""S10 of one layer: selections by token id and expert, sparse. Additive.

A trace has them twice, for two halves of its documents, so that what is fitted on one half can be
judged on the other.

Shape suffixes: T tokens, K slots, N experts of a layer, X token ids that occur, P pairs of a token
id and an expert that occur, B token ids of a block.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class VocabularyCounts:
    """Selections of the token ids that occur."""

    num_experts: int
    token_ids_X: np.ndarray
    """Token ids that occur, ascending: int64."""
    tokens_X: np.ndarray
    """Tokens of each: int64."""
    key_P: np.ndarray
    """token id x num_experts + expert, ascending: int64."""
    counts_P: np.ndarray
    """Selections of each pair: int64, never 0."""

    @classmethod
    def of_table(
        cls, token_ids_X: np.ndarray, tokens_X: np.ndarray, counts_XN: np.ndarray
    ) -> VocabularyCounts:
        """Keep what is not 0 of a full table of ascending token ids."""
        occurs_X = tokens_X > 0
        token_ids_X, counts_XN = token_ids_X[occurs_X].astype(np.int64), counts_XN[occurs_X]
        row_P, expert_P = np.nonzero(counts_XN)
        return cls(
            counts_XN.shape[1],
            token_ids_X,
            tokens_X[occurs_X].astype(np.int64),
            token_ids_X[row_P] * counts_XN.shape[1] + expert_P,
            counts_XN[row_P, expert_P].astype(np.int64),
        )

    def merge(self, other: VocabularyCounts) -> VocabularyCounts:
        """Return the sum of both; raises ValueError where the number of experts differs."""
        if other.num_experts != self.num_experts:
            raise ValueError("token counts of different layers cannot be merged")
        return VocabularyCounts(
            self.num_experts,
            *_summed(self.token_ids_X, self.tokens_X, other.token_ids_X, other.tokens_X),
            *_summed(self.key_P, self.counts_P, other.key_P, other.counts_P),
        )

    def frequent(self, least: int) -> VocabularyCounts:
        """Return only token ids that occur at least so often."""
        is_frequent_X = self.tokens_X >= least
        is_kept_P = is_frequent_X[self.row_P]
        return VocabularyCounts(
            self.num_experts,
            self.token_ids_X[is_frequent_X],
            self.tokens_X[is_frequent_X],
            self.key_P[is_kept_P],
            self.counts_P[is_kept_P],
        )

    @property
    def row_P(self) -> np.ndarray:
        """Place in `token_ids_X` of each pair's token id."""
        return np.searchsorted(self.token_ids_X, self.key_P // self.num_experts)

    @property
    def counts_N(self) -> np.ndarray:
        """Selections of each expert: int64."""
        expert_P = self.key_P % self.num_experts
        return np.bincount(expert_P, self.counts_P, self.num_experts).astype(np.int64)

    def dense(self, token_ids_B: np.ndarray) -> np.ndarray:
        """Return the selections of ascending token ids: int64 [B, N]; 0 for ids not seen."""
        bounds = np.array([token_ids_B[0], token_ids_B[-1] + 1]) * self.num_experts
        near = slice(*np.searchsorted(self.key_P, bounds))
        token_P, expert_P = np.divmod(self.key_P[near], self.num_experts)
        row_P = np.searchsorted(token_ids_B, token_P)
        is_asked_P = token_ids_B[row_P] == token_P
        counts_BN = np.zeros((len(token_ids_B), self.num_experts), np.int64)
        counts_BN[row_P[is_asked_P], expert_P[is_asked_P]] = self.counts_P[near][is_asked_P]
        return counts_BN


def _summed(
    first_P: np.ndarray, counts_P: np.ndarray, other_P: np.ndarray, other_counts_P: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    keys_P, place_P = np.unique(np.concatenate([first_P, other_P]), return_inverse=True)
    sums_P = np.bincount(place_P, np.concatenate([counts_P, other_counts_P]), len(keys_P))
    return keys_P, sums_P.astype(np.int64)
