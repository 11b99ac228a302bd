"""S1: selections by layer and expert, for every subject and segment. Additive.

Shape suffixes: T tokens of a part, K slots, N experts of a layer, G strata, S groups, P pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from moe_probe.analysis.accumulators.base import Arrays, TableAccumulator
from moe_probe.analysis.kernels.tables import CountTables
from moe_probe.analysis.reading.source import Rows
from moe_probe.analysis.statistics.set_sizes import SetSizes
from moe_probe.trace import SEGMENTS, LayerSpec
from moe_probe.trace.counting import Stratum


@dataclass(frozen=True)
class LayerCounts:
    """Selections in one layer."""

    spec: LayerSpec
    counts_N: np.ndarray
    """Selections of each expert: int64."""
    tokens: int
    """T: tokens counted."""

    @property
    def assignments(self) -> int:
        """A: selections over all experts, which is T times k where every slot is filled."""
        return int(self.counts_N.sum())

    def set_sizes(self, pairs_NN: np.ndarray | None = None) -> SetSizes:
        """Return how many experts the counted tokens select.

        Args:
            pairs_NN: Their pairs, as `PairCounts` has them: they add up to sum k_t (k_t - 1). If
                unknown, and some slots are empty, all tokens are taken to select A / T experts;
                the variance of a count is then too large by sum (k_t - A/T)^2 / N^2.
        """
        slots, top_k = self.assignments, float(self.spec.top_k)
        if not self.tokens or slots == self.tokens * self.spec.top_k:
            return SetSizes(top_k, top_k)
        mean_k = slots / self.tokens
        if not slots:
            return SetSizes(mean_k, top_k)
        return SetSizes(mean_k, mean_k if pairs_NN is None else 1 + int(pairs_NN.sum()) / slots)


class Counts(TableAccumulator):
    """Selections `counts_GN` int64 and tokens `tokens_G` int64, by stratum."""

    kind = field = "counts"

    def empty(self, spec: LayerSpec) -> Arrays:
        strata = self.axes.length("G")
        return {
            "counts_GN": np.zeros((strata, spec.num_experts), np.int64),
            "tokens_G": np.zeros(strata, np.int64),
        }

    def table(self, rows: Rows, layer: int) -> CountTables:
        pieces, arrays = rows.pieces(self.rule), self.arrays[layer]
        np.add.at(arrays["tokens_G"], pieces.stratum_P, pieces.tokens_P)
        return CountTables(arrays["counts_GN"], pieces.stratum_P)

    def layer(self, layer: int, where: Callable[[Stratum], bool] = lambda _: True) -> LayerCounts:
        """Sum one layer over the strata that `where` accepts."""
        chosen = [number for number, stratum in enumerate(self.axes.strata) if where(stratum)]
        arrays = self.arrays[layer]
        return LayerCounts(
            self.layers[layer],
            arrays["counts_GN"][chosen].sum(axis=0),
            int(arrays["tokens_G"][chosen].sum()),
        )

    def by_layer(self) -> Iterator[LayerCounts]:
        """Yield every layer, summed over all strata."""
        return map(self.layer, self.layers)

    def by_group(self, layer: int) -> tuple[np.ndarray, np.ndarray]:
        """Selections int64 [S, N] and tokens int64 [S] of every (task, subject, area)."""
        arrays = self.arrays[layer]
        counts_SXN = arrays["counts_GN"].reshape(-1, len(SEGMENTS), self.layers[layer].num_experts)
        return counts_SXN.sum(axis=1), arrays["tokens_G"].reshape(-1, len(SEGMENTS)).sum(axis=1)
