"""The tables `coactivation`, `slots`, `repeats`, `transitions` and `positions`.

Shape suffixes: N experts of a layer, S groups (task, subject, area), B octaves of positions.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from moe_probe.analysis.metrics.coactivation import coactivation_table
from moe_probe.analysis.metrics.locality import first_choice_nulls, repeats_table
from moe_probe.analysis.metrics.positions import position_deffs, positions_table
from moe_probe.analysis.metrics.ranking import rank_frequency
from moe_probe.analysis.metrics.stability import divergence_deff
from moe_probe.analysis.metrics.transitions import layer_information
from moe_probe.analysis.statistics.random_sets import any_shared, own_rate_any
from moe_probe.analysis.statistics.undefined import positive
from moe_probe.analysis.sums import Sums
from moe_probe.analysis.tables.design_effects import deffs, median_deff

MOST_PAIRS = 2016
"""Pairs of a layer in `coactivation`: all of 64 experts; of more, those furthest from chance."""


def coactivation(sums: Sums) -> pd.DataFrame:
    """Tabulate pairs of experts that one token selects: `coactivation_table`.

    Both directions of all pairs, or of the 2,016 furthest from chance where a layer has more.
    """

    def table(layer: int) -> pd.DataFrame:
        assert sums.pairs is not None
        counts = sums.counts.layer(layer)
        pairs_NN, deff = sums.pairs.arrays[layer]["pairs_NN"], layer_deff(sums, layer)
        null_k = sums.set_sizes(layer).null_k
        facts = (counts.tokens, counts.spec.top_k, deff, MOST_PAIRS, null_k)
        return coactivation_table(pairs_NN, counts.counts_N, *facts)

    return by_layer(sums, table) if sums.pairs is not None else nothing()


def slots(sums: Sums) -> pd.DataFrame:
    """Tabulate in which slot experts are selected; empty where the order of slots is unknown.

    Slots are in the order that run.json names, router's rank or descending weight; which of two
    experts of equal weight comes first, engines decide differently.

    Returns:
        layer, expert
        slot  from 1
        count  selections in that slot
        frequency  share of tokens; 1 / N by chance
        share  of the expert's selections; 1 / k by chance. In slot 1: a lead, or a filler
    """

    def table(layer: int) -> pd.DataFrame:
        assert sums.slots is not None
        counts_KN, tokens = sums.slots.arrays[layer]["slot_counts_KN"], sums.counts.layer(layer)
        slots, experts = counts_KN.shape
        totals_N = positive(counts_KN.sum(axis=0).astype(np.float64))
        return pd.DataFrame(
            {
                "expert": np.repeat(np.arange(experts), slots),
                "slot": np.tile(np.arange(1, slots + 1), experts),
                "count": counts_KN.T.ravel(),
                "frequency": rank_frequency(counts_KN, tokens.tokens).T.ravel(),
                "share": (counts_KN / totals_N).T.ravel(),
            }
        )

    return by_layer(sums, table) if sums.slots is not None and sums.has_ranks else nothing()


def repeats(sums: Sums) -> pd.DataFrame:
    """Tabulate how often tokens repeat the experts of earlier ones: `repeats_table`.

    Also, in the rows of all subjects together and null in the others:
        first_choice_null, first_choice_null_own  first_choice of two independent tokens, at the
            fair rate, 1/N where every first slot is filled, and at the experts' own rates
        any_overlap_null, any_overlap_null_own  any_overlap of the same; null where slots are empty
    """
    nulls = _repeat_nulls(sums)

    def table(layer: int) -> pd.DataFrame:
        assert sums.overlaps is not None
        arrays = sums.overlaps.arrays[layer]
        others_SX5 = arrays.get("other_token_overlaps_SX5")
        sizes = (sums.subjects, sums.overlaps.lags)
        found = repeats_table(*sizes, arrays["overlaps_SX5"], others_SX5, *sums.by_group(layer))
        if not sums.has_ranks:
            for name in ("first_choice", "other_token_first_choice"):
                found[name] = np.nan
        is_all = found["subject"] == ""
        return found.assign(
            **{name: np.where(is_all, by[layer], np.nan) for name, by in nulls.items()}
        )

    return by_layer(sums, table) if sums.overlaps is not None else nothing()


def _repeat_nulls(sums: Sums) -> dict[str, dict[int, float]]:
    """Return nulls of rates of repeats, each by layer; NaN where they are unknown."""
    names = [
        f"{rate}_null{own}" for rate in ("first_choice", "any_overlap") for own in ("", "_own")
    ]
    nulls = {name: dict.fromkeys(sums.specs, np.nan) for name in names}
    alike: dict[tuple[int, int], dict[int, np.ndarray]] = {}
    for layer, spec in sums.specs.items():
        counts = sums.counts.layer(layer)
        if sums.slots is not None and sums.has_ranks:
            first_N = sums.slots.arrays[layer]["slot_counts_KN"][0]
            fair, own = first_choice_nulls(first_N, counts.tokens)
            nulls["first_choice_null"][layer], nulls["first_choice_null_own"][layer] = fair, own
        # Of sets of k: not where some slots are empty.
        if counts.tokens and counts.assignments == counts.tokens * spec.top_k:
            nulls["any_overlap_null"][layer] = any_shared(spec.num_experts, spec.top_k)
            frequencies = alike.setdefault((spec.num_experts, spec.top_k), {})
            frequencies[layer] = counts.counts_N / counts.tokens
    # Layers of one shape at once, which takes a third of the time.
    for (_, top_k), frequencies in alike.items():
        own_L = own_rate_any(np.stack([*frequencies.values()]), top_k)
        nulls["any_overlap_null_own"] |= zip(frequencies, own_L.tolist(), strict=True)
    return nulls


def transitions(sums: Sums) -> pd.DataFrame:
    """Tabulate what a layer's first choice tells of the next MoE layer's.

    Returns:
        layer, next_layer
        dense_between  decoder layers without experts between the two
        information_bits, null_bits  mutual information of the first choices, and from noise alone
        share  of the entropy of the next layer's first choice
        Empty where the trace does not know which slot is first.
    """
    rows = []
    for layer in sums.specs if sums.flows is not None and sums.has_ranks else ():
        assert sums.flows is not None
        following = sums.flows.following(layer)
        if following is not None:
            flows_NM = sums.flows.arrays[layer]["flows_NM"]
            found = layer_information(flows_NM, layer_deff(sums, layer))
            rows.append(
                {
                    "layer": layer,
                    "next_layer": following.layer,
                    "dense_between": following.layer - layer - 1,
                    "information_bits": found.bits,
                    "null_bits": found.null_bits,
                    "share": found.share,
                }
            )
    names = ["layer", "next_layer", "dense_between", "information_bits", "null_bits", "share"]
    return pd.DataFrame(rows, columns=names)


def positions(sums: Sums) -> pd.DataFrame:
    """Tabulate octaves of positions against all others: `positions_table`."""

    def table(layer: int) -> pd.DataFrame:
        assert sums.positions is not None
        arrays, null_k = sums.positions.arrays[layer], sums.set_sizes(layer).null_k
        counts_BN, tokens_B = arrays["position_counts_BN"], arrays["position_tokens_B"]
        return positions_table(counts_BN, tokens_B, null_k, _position_deffs(sums, layer))

    return by_layer(sums, table) if sums.positions is not None else nothing()


def _position_deffs(sums: Sums, layer: int) -> np.ndarray:
    assert sums.positions_apart_B is not None
    apart_B, state = sums.positions_apart_B, sums.layers.get(layer)
    if state is None:
        return np.ones_like(apart_B)
    documents = state.moments.pooled()
    mean_tokens = float(documents.n_square_S[0] / max(documents.n_S[0], 1))
    deff = divergence_deff(state.moments)
    return position_deffs(apart_B, 1.0 if np.isnan(deff) else deff, mean_tokens)


def layer_deff(sums: Sums, layer: int) -> float:
    """Return a layer's median design effect, 1 where it is unknown."""
    found = median_deff(deffs(sums.layers.get(layer), sums.specs[layer].num_experts))
    return found if found > 0 else 1.0


def by_layer(sums: Sums, table: Callable[[int], pd.DataFrame]) -> pd.DataFrame:
    """Put the tables of all layers under one another, the layer as the first column."""
    tables = [table(layer).assign(layer=layer) for layer in sums.specs]
    joined = pd.concat(tables, ignore_index=True)
    return joined[["layer", *(name for name in joined if name != "layer")]]


def nothing() -> pd.DataFrame:
    """Return a table of layers without rows."""
    return pd.DataFrame({"layer": pd.Series(dtype="int64")})
