"""How many experts tokens select, where some leave slots empty: the k and T of every null.

Notation: N num_experts, T tokens, k_t experts that token t selects.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SetSizes:
    """How many experts the tokens of a layer select, k_t, as far as nulls depend on it.

    Under N0 the counts of two experts have the mean sum k_t / N, the variance
    sum (k_t / N) (1 - k_t / N) and the covariance - variance / (N - 1): all follow from sum k_t
    and sum k_t^2. Tokens of one fixed number of experts have the same three where that number is
    `null_k` and there are `null_tokens` of them, so nulls are taken at these two. What depends on
    more of the k_t than the two sums, such as the skew of a count, is then approximate.
    """

    mean_k: float
    """sum k_t / T, the mean over tokens; over N the fair selection frequency."""
    null_k: float
    """sum k_t^2 / sum k_t, the mean over selections: how many experts the token of one has."""

    def null_tokens(self, tokens: float) -> float:
        """Return how many tokens of `null_k` experts vary as T of these: T mean_k / null_k.

        T may be part of a layer's tokens, or T over the design effect, if k_t is exchangeable: it
        has the same distribution in all parts.
        """
        return tokens * (self.mean_k / self.null_k)
