"""The table `layers`: imbalance beside chance and noise.

Shape suffixes: N experts of a layer, L layers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from moe_probe.analysis.layer_state import LayerState
from moe_probe.analysis.metrics import imbalance
from moe_probe.analysis.metrics.coverage import chao2, unseen_mass
from moe_probe.analysis.metrics.noise import index_noise
from moe_probe.analysis.metrics.ranking import experts_to_cover
from moe_probe.analysis.metrics.stability import spearman, split_divergence, split_null
from moe_probe.analysis.statistics.clusters import effective_tokens, layer_quantiles
from moe_probe.analysis.statistics.intervals import (
    rate_certifiable,
    tokens_needed,
    tokens_to_estimate,
)
from moe_probe.analysis.statistics.moderated import unseen_deffs
from moe_probe.analysis.statistics.multiplicity import layer_test
from moe_probe.analysis.statistics.nulls import expected_indices
from moe_probe.analysis.statistics.undefined import positive
from moe_probe.analysis.sums import Sums
from moe_probe.analysis.tables.chance import chance_of_layer
from moe_probe.analysis.tables.design_effects import (
    deffs,
    mean_deff,
    median_deff,
    num_documents,
    within_deffs,
)
from moe_probe.analysis.tables.gates import gates_of_layer

INDICES = (
    "max_vio",
    "cv",
    "gini",
    "entropy",
    "effective_experts",
    "kl_uniform",
    "total_variation",
    "unseen",
)
"""Imbalance indices of the `layers` table, each with `<name>_null` and `<name>_noise` beside it."""
_CERTIFIED, _WITHIN = 0.01, 0.1
_WHOLE = ("unseen", "documents", "experts_for_half", "below_1", "below_10", "below_50")


def layers_table(sums: Sums) -> pd.DataFrame:
    """Tabulate every MoE layer.

    Returns:
        layer, num_experts, top_k  from the trace
        tokens, assignments  T and A, counted by the rule in force
        max_vio, cv, gini, entropy (nats), effective_experts, kl_uniform (nats),
        total_variation, unseen (experts)  each followed by `<name>_null`, its expectation if T
            tokens chose their experts uniformly at random, and `<name>_noise`, its standard
            deviation over resampled documents; null without tokens
        deff_low, deff_median, deff_high  5 %, median and 95 % over experts of the design effect
        tokens_effective  T_eff, T over `deff_mean`: as many independent tokens, routed fairly,
            would give the same CV^2 and KL; nulls at the noise of the documents are taken there
        documents  that have counted tokens, shared prefixes included: what T_eff rests on; of more
            than 16,384 those whose neighbours have some, too
        certifiable_load  relative load below which an expert never selected is certified to be, at
            the design effect that `share_interval` takes for none: never below 1, more with few
            documents
        uniform_p  test against uniform routing, documents as the unit; with much text everything
            differs: read the indices
        split_half_spearman  rank correlation of the loads in two halves of the documents
        split_half_divergence, split_half_divergence_null  Jensen-Shannon divergence of the halves
            in bits, and from noise alone
        experts_for_half  experts that hold half of all selections
        unseen_mass  Good-Turing: share of further use that falls on experts unseen so far; null
            where there are more than 16,384 documents
        chao2  Chao's lower bound on the experts that more such documents would select
        mean_k  mean over tokens of how many experts k_t one selects, A / T: top_k where no slot is
            empty; null without tokens
        null_k  mean of the same over selections, sum k_t^2 / A: the k of nulls. k_t has the
            variance mean_k (null_k - mean_k); of counts alone null_k is mean_k
        mean_mass  mean over tokens of the selected weights' sum, as captured: 1, or the model's
            scaling factor, where it renormalises. Null without captured weights, as is
        weight_frequency_correlation  over experts, of mean weight and frequency: by chance 0, with
            the sd 1 / sqrt(n - 1) for n experts that are selected
        deff_within  median over experts of the design effect where subjects are fixed, as those of
            a benchmark are: of documents within subjects
        tokens_to_certify  tokens of such text in which no selection certifies r < 0.01, at the
            design effect of `certifiable_load`
        tokens_to_estimate  tokens that tell r = 1 to within 10 %, at `deff_median`
        below_1, below_1_null, ... longest_idle_fair_95  `tables.chance.chance_of_layer`
        deff_mean  mean over experts of the design effect, with weights 1 - p: how many times as
            large documents make CV^2 and KL of fair routing; corrected for the documents' lengths,
            as the three quantiles above are not
    """
    rows = [_row(sums, layer) for layer in sums.specs]
    return pd.DataFrame(rows).astype(dict.fromkeys(_WHOLE, "Int64"))


def _row(sums: Sums, layer: int) -> dict[str, Any]:
    spec, state = sums.specs[layer], sums.layers.get(layer)
    counts = sums.counts.layer(layer)
    counts_N, tokens = counts.counts_N, counts.tokens
    sizes = sums.set_sizes(layer)
    null = expected_indices(spec.num_experts, sizes.null_k, sizes.null_tokens(tokens))
    row: dict[str, Any] = {
        "layer": layer,
        "num_experts": spec.num_experts,
        "top_k": spec.top_k,
        "tokens": tokens,
        "assignments": counts.assignments,
    }
    for name in INDICES:
        index = getattr(imbalance, name)
        row[name] = float(index(counts_N))
        row[f"{name}_null"] = getattr(null, name)
        row[f"{name}_noise"] = _noise(state, index)
    deff_N = deffs(state, spec.num_experts)
    low, median, high = layer_quantiles(deff_N, (0.05, 0.5, 0.95)).tolist()
    mean = mean_deff(state)
    wide = _deff_of_none(state, spec.num_experts)
    certain = effective_tokens(tokens, wide)
    row |= {
        "deff_low": low,
        "deff_median": median,
        "deff_high": high,
        "tokens_effective": float(effective_tokens(tokens, mean)),
        "documents": np.nan if state is None else state.documents,
        "certifiable_load": float(rate_certifiable(certain, spec.num_experts, sizes.mean_k)),
        "uniform_p": _uniform_p(counts_N, state),
        **_halves(state, sizes.null_k),
        "experts_for_half": float(experts_to_cover(counts_N, (0.5,))[0]),
        "unseen_mass": np.nan
        if state is None or state.is_grouped
        else unseen_mass(state.documents_seen_N),
        # Some experts may be selected in shared prefixes alone.
        "chao2": np.nan
        if state is None
        else float(np.maximum(chao2(state.documents_seen_N), np.count_nonzero(counts_N))),
        "mean_k": sizes.mean_k if tokens else np.nan,
        "null_k": sizes.null_k if counts.assignments else np.nan,
        **gates_of_layer(sums, layer),
        "deff_within": median_deff(within_deffs(state, spec.num_experts)),
        **_tokens_wanted(spec.num_experts, sizes.mean_k, wide, median),
        **chance_of_layer(sums, layer),
        "deff_mean": mean,
    }
    return row


def _deff_of_none(state: LayerState | None, num_experts: int) -> float:
    """What `share_interval` takes for an expert never selected, be there one or not."""
    if state is None:
        return np.nan
    unseen = unseen_deffs(state.moments.pooled())[0]
    return float(np.maximum(np.fmax(unseen, median_deff(state.interval_deffs_N)), 1))


def _tokens_wanted(
    num_experts: int, mean_k: float, certain: float, typical: float
) -> dict[str, float]:
    return {
        "tokens_to_certify": float(tokens_needed(_CERTIFIED, num_experts, mean_k, certain)),
        "tokens_to_estimate": float(tokens_to_estimate(_WITHIN, num_experts, mean_k, typical)),
    }


def mean_k(layers: pd.DataFrame) -> np.ndarray:
    """Return how many experts a token selects, A / T: at most `top_k`, the slots it can fill.

    Args:
        layers: top_k, tokens, assignments.

    Returns:
        float64 [L]; `top_k` where nothing was selected.
    """
    top_k_L, tokens_L, slots_L = (
        layers[name].to_numpy(np.float64) for name in ("top_k", "tokens", "assignments")
    )
    return np.where(slots_L > 0, slots_L / positive(tokens_L), top_k_L)


def of_fixed_k(layers: pd.DataFrame, sums: Sums) -> pd.DataFrame:
    """Return the table `layers` with those k, T and T_eff at which nulls are taken: `SetSizes`.

    In `top_k`, `tokens` and `tokens_effective`, all as they were where every slot is filled.
    """
    sizes = [sums.set_sizes(layer) for layer in layers["layer"]]
    tokens = zip(sizes, layers["tokens"], strict=True)
    effective = zip(sizes, layers["tokens_effective"], strict=True)
    return layers.assign(
        top_k=[size.null_k for size in sizes],
        tokens=np.array([round(size.null_tokens(t)) for size, t in tokens], np.int64),
        tokens_effective=[size.null_tokens(t) for size, t in effective],
    )


def _uniform_p(counts_N: np.ndarray, state: LayerState | None) -> float:
    if state is None or num_documents(state) < 2:
        return np.nan
    return float(layer_test(counts_N, state.replicates_BN, num_documents(state))[2])


def _noise(state: LayerState | None, index: Callable[[np.ndarray], np.ndarray]) -> float:
    # One document, drawn again and again, does not vary.
    if state is None or num_documents(state) < 2:
        return np.nan
    return float(index_noise(state.replicates_BN, index))


def _halves(state: LayerState | None, null_k: float) -> dict[str, float]:
    names = ("split_half_spearman", "split_half_divergence", "split_half_divergence_null")
    if state is None or not state.halves_2N.any(axis=1).all():
        return dict.fromkeys(names, np.nan)
    first_N, second_N = state.halves_2N
    used = int(state.halves_2N.any(axis=0).sum())
    sizes = (int(first_N.sum()), int(second_N.sum()))
    null = split_null(used, min(null_k, used), sizes, 1, state.halves_deff)
    found = (float(spearman(first_N, second_N)), split_divergence(first_N, second_N))
    return dict(zip(names, (*found, null.divergence), strict=True))
