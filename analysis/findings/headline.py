"""The three questions people ask of a trace, answered in sentences from the report's tables.

Whatever is said to exceed chance would be seen in fewer than one of 1,000 traces of as many
effective tokens whose routing is fair and random.

Shape suffixes: E experts of all layers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import bdtrik

from moe_probe.analysis.findings.idle_passes import idle_in_passes
from moe_probe.analysis.findings.idle_tokens import idle_in_tokens
from moe_probe.analysis.findings.unevenness import unevenness
from moe_probe.analysis.findings.wording import CHANCE, favoured_names, listed, name_of
from moe_probe.analysis.metrics.tiers import NEAR_IDLE, RARE
from moe_probe.analysis.reading.orders import PASSES, TOKENS
from moe_probe.analysis.statistics.intervals import RULE_OF_THREE, few_documents
from moe_probe.analysis.statistics.undefined import positive
from moe_probe.analysis.tables.layers import mean_k

BEYOND_CHANCE = 2.5
"""Excess of mutual information over chance, in units of that of the 95 % quantile: 4 sd or so."""

_SAME = 1e-9
"""Bits that rounding makes of permuted documents, each of which may be all of a subject."""
_EMPTY = "No token was counted."
_UNUSED = "No counted token selected an expert."


@dataclass(frozen=True)
class Headline:
    """One answer of one to three sentences each."""

    uneven: str
    """Are experts loaded unevenly, and how much of that is specialisation?"""
    least_used: str
    """Which experts are used least, in which layer, and on which subject?"""
    idle: str
    """Are experts that idle for long starved or reserved, and what can the trace not tell?"""


def headline(
    experts: pd.DataFrame,
    layers: pd.DataFrame,
    idle_windows: pd.DataFrame,
    subjects: pd.DataFrame,
    specialization: pd.DataFrame,
    *,
    unit: str = TOKENS,
) -> Headline:
    """Return the three answers.

    Args:
        experts: layer, expert, count, relative_load, ci_low and ci_high of the relative load,
            tier, deff, longest_idle, longest_idle_shuffled, rate_deficit, burstiness, documents; in
            forward passes also p_fair.
        layers: layer, num_experts, top_k, tokens, assignments, tokens_effective, documents,
            certifiable_load, uniform_p, unseen_null, and max_vio and cv, each with `_null` and
            `_noise`.
        idle_windows: layer, window and expected_runs_fair; in forward passes also window_tokens.
        subjects: layer, expert, subject, count, frequency, log_odds, q_value; may be empty.
        specialization: documents_bits with null and null_95, documents_pooled_kl (nats), all of
            the same tokens; may be empty.
        unit: Of idle runs and windows: TOKENS or PASSES.
    """
    if not (layers["assignments"] > 0).any():
        nothing = _UNUSED if (layers["tokens"] > 0).any() else _EMPTY
        return Headline(nothing, nothing, nothing)
    unused = layers.loc[layers["assignments"] == 0, "layer"]
    experts, layers, idle_windows, subjects = (
        table[~table["layer"].isin(unused)] for table in (experts, layers, idle_windows, subjects)
    )
    if unit == PASSES:
        idle = idle_in_passes(experts, idle_windows)
    else:
        idle = idle_in_tokens(experts, layers, idle_windows, subjects)
    low_E, high_E = load_limits(experts, layers)
    least = _least(experts, layers, subjects, low_E)
    return Headline(
        uneven=" ".join(
            [
                unevenness(experts, layers, low_E, high_E),
                *_specialised(specialization),
                *_unused(unused),
            ]
        ),
        least_used=" ".join([*_certified(experts, layers), *least]),
        idle=" ".join([*idle, *_certifiable(layers)]),
    )


def load_limits(experts: pd.DataFrame, layers: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Return between which relative loads fair routing keeps every expert.

    Quantiles of Binomial(T_eff, k/N) over their mean, shared out over the experts (Bonferroni).
    k is `mean_k`: tokens of different k vary less than tokens of their mean (Hoeffding 1956).
    T_eff is that of the layer, or of the expert where its own design effect leaves fewer: what few
    documents use much varies more than the rest. Where all tokens of a layer select the same
    experts it is the number of documents, the least there can be. It is smaller the fewer documents
    it rests on (`few_documents`), one token at the least.

    Args:
        experts: layer, relative_load and deff, NaN where it is unknown.
        layers: layer, num_experts, top_k, tokens, assignments, tokens_effective, documents.

    Returns:
        float64 [E] each; the chance that any expert is outside is at most 1 in 2,000.
        NaN where the layer's T_eff is unknown.
    """
    is_never_or_always = experts["deff"].isna() & ~experts["relative_load"].between(0.001, 1.001)
    is_collapsed_E = is_never_or_always.groupby(experts["layer"]).transform("all").to_numpy()
    facts = layers.assign(mean_k=mean_k(layers)).set_index("layer").loc[experts["layer"]]
    names = ("tokens", "tokens_effective", "documents", "num_experts", "mean_k")
    tokens_E, effective_E, documents_E, experts_E, k_E = (
        facts[name].to_numpy(np.float64, na_value=np.nan) for name in names
    )
    own_E = tokens_E / positive(experts["deff"].to_numpy(np.float64))
    effective_E = np.where(own_E < effective_E, own_E, effective_E)
    effective_E = np.where(is_collapsed_E, documents_E, effective_E)
    tail, rate_E = CHANCE / 4 / len(experts), k_E / experts_E
    tokens_E = np.maximum(effective_E / few_documents(documents_E, tail), 1)
    low_E, high_E = (bdtrik(chance, tokens_E, rate_E) for chance in (tail, 1 - tail))
    return np.floor(low_E) / (tokens_E * rate_E), np.ceil(high_E) / (tokens_E * rate_E)


def _unused(layer: pd.Series) -> list[str]:
    if layer.empty:
        return []
    names = listed([f"layer {number}" for number in layer])
    return [f"No counted token selected an expert of {names}: left out here."]


def _specialised(specialization: pd.DataFrame) -> list[str]:
    known = specialization.dropna(subset="null")
    if known.empty:
        return []
    excess, usual = known["documents_bits"] - known["null"], known["null_95"] - known["null"]
    if usual.sum() < _SAME:
        return ["So few documents do not tell whether subjects differ in their experts."]
    if not excess.sum() > BEYOND_CHANCE * usual.sum():
        return ["Subjects do not differ in their experts beyond chance."]
    between, pooled = excess.sum() * math.log(2), known["documents_pooled_kl"].sum()
    return [
        f"Of the unevenness inside a subject, {between / (between + pooled):.0%} is specialisation "
        "that evens out over the subjects, and the rest remains in the load of all together."
    ]


def _certified(experts: pd.DataFrame, layers: pd.DataFrame) -> list[str]:
    rare = experts[experts["ci_high"] < RARE]
    if rare.empty:
        return [f"No expert is certified below {RARE:.0%} of its fair share."]
    layer = rare["layer"].value_counts(sort=False).sort_index().idxmax()
    facts = layers[layers["layer"] == layer].iloc[0]
    here = rare.loc[rare["layer"] == layer, "ci_high"]
    number, most = len(here), int(facts["num_experts"])
    verb = "is" if number == 1 else "are"
    lower = int((here < NEAR_IDLE).sum()) or "none"
    return [
        f"Layer {layer}: {number} of {most} experts {verb} certified below {RARE:.0%} of the fair "
        f"share, {lower} of them below {NEAR_IDLE:.0%}, on "
        f"{int(facts['tokens']):,} tokens{_effective(facts)}; in all layers "
        f"{len(rare):,} of {len(experts):,} are."
    ]


def _least(
    experts: pd.DataFrame, layers: pd.DataFrame, subjects: pd.DataFrame, low_E: np.ndarray
) -> list[str]:
    order = ["ci_high", "relative_load", "layer", "expert"]
    known = experts.sort_values(order)
    never = known[known["count"] == 0]
    least = never.iloc[0] if len(never) else known.iloc[0]
    is_here_L = layers["layer"] == least["layer"]
    is_this_E = (experts["layer"] == least["layer"]) & (experts["expert"] == least["expert"])
    is_fair = least["relative_load"] >= low_E[is_this_E.to_numpy()][0]
    # What its own interval certifies is not called chance, though all experts together might be.
    is_open = is_fair and not least["ci_high"] < RARE
    unknown = "" if least["ci_high"] >= 0 else _no_interval(layers.loc[is_here_L, "documents"])
    if len(never):
        most = f", whose load is at most {_share(least['ci_high'])} of its fair share"
        most = "" if least["ci_high"] >= 1 else most
        is_little = is_open and not unknown
        little = "; so little text does not tell that from chance" if is_little else ""
        # What independent tokens leave out by chance says nothing where documents are too few.
        by_chance = "" if is_fair else f" ({_expected(layers['unseen_null'].sum())} by chance)"
        return [
            f"Never selected: {len(never):,} of {len(experts):,} experts{by_chance}, such as "
            f"{name_of(least)}{unknown or most}{little}."
        ]
    interval = f" (95% interval {_share(least['ci_low'])} to {_share(least['ci_high'])})"
    text = (
        f"The least used, {name_of(least)}, carries {_share(least['relative_load'])} of its fair "
        f"share{unknown or interval}"
    )
    if is_open:
        return [f"{text}, no less than chance may leave to one of {len(experts):,}."]
    mine = subjects[(subjects["layer"] == least["layer"]) & (subjects["expert"] == least["expert"])]
    favoured = favoured_names(subjects, least)
    # Fewer selections, or those of few documents, leave out subjects by chance.
    is_telling = least["count"] >= RULE_OF_THREE * np.fmax(least["deff"], 1) * len(mine)
    without = mine.loc[(mine["count"] == 0) & is_telling, "subject"].astype(str).tolist()
    text += f"; most on {listed(favoured)}" if favoured else ""
    text += f"; never on {listed(without)}" if without else ""
    return [f"{text}."]


def _no_interval(documents: pd.Series) -> str:
    if documents.isna().all():
        return " (counts alone give no interval)"
    if (documents < 2).all():
        return " (one document gives no interval)"
    return " (documents that do not differ give no interval)"


def _certifiable(layers: pd.DataFrame) -> list[str]:
    known = layers.dropna(subset="certifiable_load").sort_values("certifiable_load")
    if known.empty:
        return []
    worst = known.iloc[-1]
    # Not T_eff: an expert that nothing selects has the design effect of intervals.
    rate = worst["certifiable_load"] * mean_k(known.tail(1))[0] / worst["num_experts"]
    effective = f" (as from {RULE_OF_THREE / rate:,.0f} independent tokens)"
    if worst["certifiable_load"] >= 1:
        return [f"No load below a fair share can be certified on so little text{effective}."]
    which = "every layer" if len(known) == len(layers) else f"{len(known)} of {len(layers)} layers"
    text = f"{_share(worst['certifiable_load'])} of its fair share in {which}{effective}."
    return [f"An expert that this trace never selects can be certified below {text}"]


def _effective(layer: pd.Series) -> str:
    tokens = layer["tokens_effective"]
    return "" if pd.isna(tokens) else f" (T_eff {tokens:,.0f})"


def _expected(number: float) -> str:
    if number < CHANCE:
        return f"under {CHANCE}"
    return f"{number:.1g}" if number < 0.1 else f"{number:.1f}"


def _share(load: float) -> str:
    return f"{100 * load:.2g}%" if load < RARE else f"{load:.0%}"
