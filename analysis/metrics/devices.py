"""D14: imbalance between devices or expert groups, and what other systems call balancedness.

Experts lie on devices in contiguous blocks of equal size, as engines place them before any
rebalancing and as group-limited routing groups them.

Shape suffixes: L layers, N experts of a layer, D devices, R simulated traces, X texts; leading axes
are kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from moe_probe.analysis.metrics.imbalance import max_vio
from moe_probe.analysis.statistics.nulls import extreme_moments
from moe_probe.trace import LayerSpec

_TRACES = 64
"""Simulated by `balancedness_null`: enough for three decimals."""


def device_loads(counts_N: np.ndarray, devices: int) -> np.ndarray:
    """Return the selections of each device's experts.

    Args:
        counts_N: Selections, [..., N].
        devices: D, the number of devices or groups.

    Returns:
        [..., D], of the same kind as the counts.

    Raises:
        ValueError: N is not a multiple of D.
    """
    num_experts = counts_N.shape[-1]
    if devices < 1 or num_experts % devices:
        raise ValueError(f"{num_experts} experts do not split evenly over {devices} devices")
    blocks = counts_N.reshape(*counts_N.shape[:-1], devices, num_experts // devices)
    return np.asarray(blocks.sum(axis=-1))


@dataclass(frozen=True)
class DeviceNull:
    """Imbalance between devices that chance alone gives."""

    max_vio: float
    cv: float
    """Root of the exact E[CV^2]."""


class GroupLimit(NamedTuple):
    """How many groups of consecutive experts a layer has, and of how many a token selects."""

    groups: int = 1
    limit: int = 1


UNLIMITED = GroupLimit()


def group_limit(spec: LayerSpec) -> GroupLimit:
    """Return the limit of a router that takes groups of experts first, 1 of 1 for others."""
    groups, limit = (spec.facts.get(name) for name in ("num_groups", "groups_per_token"))
    if not (isinstance(groups, int) and isinstance(limit, int) and 0 < limit < groups):
        return UNLIMITED
    size, rest = divmod(spec.num_experts, groups)
    return UNLIMITED if rest or spec.top_k > limit * size else GroupLimit(groups, limit)


def device_null(
    num_experts: int,
    top_k: float,
    devices: int,
    tokens: float,
    limited: GroupLimit = UNLIMITED,
) -> DeviceNull:
    """Return the expected imbalance between devices under N0 (exchangeable top-k routing) or N0g.

    A token's selections on one device are hypergeometric: E[CV^2] =
    (D - 1) (N - k) / ((N - 1) k T). Under N0g each token draws its groups uniformly and then k of
    their experts, which come together on devices: E[CV^2] follows from the chance of two experts
    of one group, and of two groups, to be selected together. Routers that take groups by their
    scores, as DeepSeek-V3's, spread a little more evenly: there it is a fifth too large. MaxVio is
    CV sqrt(D / (D-1)) times the expected maximum of D standard normals.

    Args:
        num_experts: N.
        top_k: k.
        devices: D.
        tokens: T, over the design effect for documents instead of tokens; NaN where it is 0.
        limited: For N0g. Where neither groups split evenly over devices nor devices over groups,
            devices are taken for average ones.
    """
    if tokens == 0:
        return DeviceNull(math.nan, math.nan)
    if devices == 1 or num_experts == top_k:
        return DeviceNull(0.0, 0.0)
    square = _device_variance(num_experts, top_k, devices, limited) / tokens
    spread = math.sqrt(square * devices / (devices - 1))
    most = min(devices, num_experts / top_k) - 1
    return DeviceNull(
        max_vio=min(spread * extreme_moments(devices)[0], most),
        cv=math.sqrt(min(square, most)),
    )


def _device_variance(num_experts: int, top_k: float, devices: int, limited: GroupLimit) -> float:
    """Return D^2 / k^2 times the variance of one token's selections on one device."""
    groups, limit = limited
    each, size = num_experts // devices, num_experts // groups
    fair, pool = top_k / num_experts, limit * size
    both = top_k * (top_k - 1) / max(pool * (pool - 1), 1)
    same = both * limit / groups - fair**2
    apart = both * limit * (limit - 1) / max(groups * (groups - 1), 1) - fair**2
    # Experts of one group that a device has beside any of its own.
    beside = min(each, size) - 1
    variance = fair - fair**2 + beside * same + (each - 1 - beside) * apart
    return variance * each * devices**2 / top_k**2


@dataclass(frozen=True)
class Balancedness:
    """One set of counts, as different systems would report it."""

    sglang_utilisation: float
    """Mean over layers of (mean + 1e-5) / (max + 1e-5) of the devices' loads; 1 is even."""
    vllm_log: float
    """Sum over layers of mean, over sum of max; 1 is even. The harmonic mean of mean / max where
    layers have equal totals, and then never above the form of SGLang."""
    vllm_min: float
    """Smallest mean / max over layers, as vLLM exports it to Prometheus; 1 is even."""
    vllm_p50: float
    """Median of mean / max over layers."""
    vllm_p90: float
    """90th percentile of mean / max over layers, interpolated linearly."""
    vllm_avg: float
    """Mean of mean / max over layers."""
    tensorrt_llm_ratio: float
    """Mean over layers of (max - mean) / mean; 0 is even."""
    max_mean: float
    """Mean over layers of max / mean; 1 is even."""
    max_vio: float
    """Mean over layers of MaxVio of the experts, not of the devices; 0 is even."""


def balancedness(counts_LN: Sequence[np.ndarray], devices: int) -> Balancedness:
    """Return the balancedness of all layers in the definitions that are in use.

    The unit of time is whatever the counts cover: a system that averages over steps reports
    less balance than its counts of a whole run give.

    Args:
        counts_LN: Selections of each layer, each [N]; N may differ. Layers that nothing
            selected are left out.
        devices: D, the number of GPUs or other units that hold experts.

    Returns:
        One value per definition; NaN if no layer counts anything.

    Raises:
        ValueError: N of a layer is not a multiple of D.

    Sources: SGLang `expert_distribution`, vLLM `eplb_state`, TensorRT-LLM's blog on expert
    parallelism, Loss-Free Balancing (2408.15664).
    """
    loads = [device_loads(counts_N, devices) for counts_N in counts_LN if counts_N.any()]
    if not loads:
        return Balancedness(*[math.nan] * 9)
    load_LD = np.stack(loads).astype(np.float64)
    mean_L, max_L = load_LD.mean(axis=1), load_LD.max(axis=1)
    even_L = mean_L / max_L
    return Balancedness(
        sglang_utilisation=float(((mean_L + 1e-5) / (max_L + 1e-5)).mean()),
        vllm_log=float(mean_L.sum() / max_L.sum()),
        vllm_min=float(even_L.min()),
        vllm_p50=float(np.median(even_L)),
        vllm_p90=float(np.quantile(even_L, 0.9)),
        vllm_avg=float(even_L.mean()),
        tensorrt_llm_ratio=float((max_L / mean_L - 1).mean()),
        max_mean=float((max_L / mean_L).mean()),
        max_vio=float(np.mean([max_vio(counts_N) for counts_N in counts_LN if counts_N.any()])),
    )


def balancedness_null(cv_L: np.ndarray, max_vio_L: np.ndarray, devices: int) -> Balancedness:
    """Return what fair routing gives by every definition of balancedness.

    The mean of simulated traces: loads of devices are normal, with the variance that N0 gives, and
    add up to what they must. The seed is fixed.

    Args:
        cv_L: `DeviceNull.cv` of each layer that selected something.
        max_vio_L: MaxVio of its experts under N0, whatever the number of devices.
        devices: D.

    Returns:
        One value per definition; NaN without layers.
    """
    if not len(cv_L):
        return Balancedness(*[math.nan] * 9)
    max_RL = _largest_loads(cv_L[:, None], devices)[..., 0]
    even_RL = 1 / max_RL
    return Balancedness(
        sglang_utilisation=float(even_RL.mean()),
        vllm_log=float((1 / max_RL.mean(axis=1)).mean()),
        vllm_min=float(even_RL.min(axis=1).mean()),
        vllm_p50=float(np.median(even_RL, axis=1).mean()),
        vllm_p90=float(np.quantile(even_RL, 0.9, axis=1).mean()),
        vllm_avg=float(even_RL.mean()),
        tensorrt_llm_ratio=float(max_RL.mean() - 1),
        max_mean=float(max_RL.mean()),
        max_vio=float(max_vio_L.mean()),
    )


def even_null(cv_LX: np.ndarray, devices: int) -> np.ndarray:
    """Return mean / max of the devices' loads under fair routing, in every layer and text.

    Its mean over layers is `vllm_avg` of `balancedness_null`: of the same simulated traces.

    Args:
        cv_LX: `DeviceNull.cv` of each layer, for any number of texts; NaN where there are no
            tokens.
        devices: D.

    Returns:
        float64 [L, X], in (0, 1]; NaN where the CV is.
    """
    return np.asarray((1 / _largest_loads(cv_LX, devices)).mean(axis=0))


def _largest_loads(cv_LX: np.ndarray, devices: int) -> np.ndarray:
    """Return max / mean of the devices' loads in simulated traces, [R, L, X]."""
    normal_RLD = np.random.default_rng(0).standard_normal((_TRACES, len(cv_LX), devices))
    normal_RLD -= normal_RLD.mean(axis=-1, keepdims=True)
    spread_LX = cv_LX * math.sqrt(devices / max(devices - 1, 1))
    return np.asarray(np.maximum(1 + spread_LX * normal_RLD.max(axis=-1)[..., None], 1.0))
