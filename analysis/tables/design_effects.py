"""Design effects and documents of a layer, as tables, captions and views take them.

Shape suffixes: S groups (task, subject, area), N experts of a layer.
"""

from __future__ import annotations

import math

import numpy as np

from moe_probe.analysis.layer_state import LayerState
from moe_probe.analysis.metrics.stability import divergence_deff, divergence_deffs
from moe_probe.analysis.statistics.clusters import (
    cluster_variance,
    design_effect,
    layer_quantiles,
    pooled_design_effect,
    stratified_variance,
)
from moe_probe.analysis.statistics.undefined import positive


def deffs(state: LayerState | None, num_experts: int) -> np.ndarray:
    """Return each expert's design effect, all groups pooled: float64 [N], NaN where undefined."""
    if state is None:
        return np.full(num_experts, np.nan)
    return pooled_design_effect(state.moments)


def median_deff(deff_N: np.ndarray) -> float:
    """Return a layer's median design effect; NaN where no expert has one."""
    return float(layer_quantiles(deff_N, (0.5,))[0])


def mean_deff(state: LayerState | None) -> float:
    """Return a layer's mean design effect, of weights 1 - p; NaN where no expert has one.

    To first order fair routing gives CV^2 and KL as many times as large as of independent tokens.
    """
    return math.nan if state is None else divergence_deff(state.moments)


def widened_deffs(state: LayerState | None, num_experts: int) -> np.ndarray:
    """Return the `interval_deffs` of all text: float64 [N], NaN where undefined."""
    return np.full(num_experts, np.nan) if state is None else state.interval_deffs_N


def within_deffs(state: LayerState | None, num_experts: int) -> np.ndarray:
    """Return each expert's design effect inside subjects: float64 [N], NaN where undefined."""
    if state is None:
        return np.full(num_experts, np.nan)
    pooled = state.moments.pooled()
    share_N = pooled.c_SN[0] / positive(pooled.n_S)
    return design_effect(stratified_variance(state.moments), share_N, int(pooled.n_S[0]))


def subject_deffs(state: LayerState | None, groups: int, num_experts: int) -> np.ndarray:
    """Return each subject's median design effect over experts: float64 [S], NaN where undefined."""
    if state is None or not groups:
        return np.full(groups, np.nan)
    moments = state.moments
    share_SN = moments.c_SN / positive(moments.n_S)[:, None]
    deff_SN = design_effect(cluster_variance(moments), share_SN, moments.n_S[:, None])
    return np.asarray(layer_quantiles(deff_SN, (0.5,))[0])


def mean_deffs(state: LayerState | None, groups: int) -> np.ndarray:
    """Return each subject's mean design effect over experts: float64 [S], 1 where it is unknown.

    What nulls of whole layers take, as `mean_deff` of all text.
    """
    if state is None or not groups:
        return np.ones(groups)
    return np.asarray(np.nan_to_num(divergence_deffs(state.moments), nan=1.0))


def num_documents(state: LayerState | None) -> int:
    """Return the documents, shared prefixes included, that the design effects are of.

    Of more than 16,384 several neighbours count as one.
    """
    return 0 if state is None else int(state.moments.clusters_S.sum())
