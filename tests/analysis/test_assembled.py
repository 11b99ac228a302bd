"""The tables of experts, layers and windows as assembled, against loops over single tokens."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from itertools import permutations
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
from scipy.special import stdtr
from scipy.stats import chi2

from moe_probe.analysis.metrics.tiers import tiers
from moe_probe.analysis.reading.orders import Order
from moe_probe.analysis.results import Analysis, analyse
from moe_probe.analysis.statistics.idle_null import (
    expected_idle_share,
    expected_longest_run,
    expected_runs,
    p_longest_at_least,
    sd_longest_run,
)
from moe_probe.analysis.statistics.intervals import share_interval
from tests.analysis.naive import Document, NaiveLayer, entropy
from tests.analysis.streams import LAYERS, NEVER, make_stream

WINDOWS, SHUFFLES = (4, 12, 40), 3
CASES = ["many", "question", "one document"]


class Case(NamedTuple):
    found: Analysis
    layers: list[NaiveLayer]
    documents: list[Document]
    """In canonical order, with prefixes that the rule does not count."""

    def rows(self, name: str) -> Iterator[tuple[NaiveLayer, Any]]:
        """Every row of a table with its layer."""
        layers = {layer.spec.layer: layer for layer in self.layers}
        for row in self.found.table(name).to_dict("records"):
            yield layers[row["layer"]], row


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Case:
    folder = tmp_path_factory.mktemp("stream")
    number, rule, prefix = {
        "many": (14, "unique", 3),
        "question": (9, "question", 3),
        "one document": (1, "unique", 0),
    }[request.param]
    trace, tokens = make_stream(
        folder / "trace", CASES.index(request.param), documents=number, prefix=prefix
    )
    documents = sorted({(token.subject, token.document) for token in tokens})
    if rule == "question":
        tokens = [token for token in tokens if token.document[0]]
    options: Any = {"shuffles": SHUFFLES, "replicates": 5, "permutations": 5}
    found = analyse(trace, rule=rule, windows=WINDOWS, **options)
    return Case(found, [NaiveLayer.of(tokens, spec) for spec in LAYERS], documents)


def same(found: Any, expected: Any) -> bool:
    """Equal up to rounding; null is NaN."""
    return bool(
        (pd.isna(found) and math.isnan(expected))
        or (not pd.isna(found) and found == pytest.approx(expected, abs=1e-9))
    )


def test_cases_have_what_is_to_be_covered(case: Case) -> None:
    assert {layer.spec.top_k for layer in case.layers} == {1, 2, 3}
    slots = {len(case.layers[3].slots(token)) for token in case.layers[3].tokens}
    assert len(slots) > 1
    assert all(layer.count(NEVER) == 0 for layer in case.layers)
    assert len({len(part) for part in case.layers[0].documents.values()}) > 1 or (
        len(case.layers[0].documents) == 1
    )


def test_loads(case: Case) -> None:
    for layer, row in case.rows("experts"):
        expert, tokens = row["expert"], len(layer.tokens)
        assert row["count"] == layer.count(expert)
        assert same(row["frequency"], layer.count(expert) / tokens)
        assert same(row["relative_load"], layer.loads[expert])


def test_tokens_that_would_be_enough(case: Case) -> None:
    """As many as certify 0.01 of a fair load from no selection, or tell a fair one to 10 %."""
    for layer, row in case.rows("layers"):
        tokens = len(layer.tokens)
        fair = sum(layer.count(e) for e in layer.experts) / tokens / layer.spec.num_experts
        wide_N = layer.interval_deffs()
        wide = max(np.median(wide_N), wide_N[NEVER], 1)
        enough = row["tokens_to_certify"]
        assert same(enough * 0.01 * fair / wide, math.nan if math.isnan(wide) else 3.0)
        bound = row["certifiable_load"]
        assert pd.isna(bound) or bound == pytest.approx(min(0.01 * enough / tokens, 1 / fair))
        variance = fair * (1 - fair) * layer.median_deff() / row["tokens_to_estimate"]
        assert same(1.959963984540054 * math.sqrt(variance), 0.1 * fair + 0 * variance)


def test_experts_that_may_be_of_the_least_used_tenth(case: Case) -> None:
    """All but those of which enough others are shown to have less, pair by pair, by Holm's rule."""
    for layer in case.layers:
        table = case.found.experts.query("layer == @layer.spec.layer")
        kept_BN = case.found.sums.layers[layer.spec.layer].replicates_BN
        kept_BN = kept_BN[kept_BN.sum(axis=1) > 0]
        share_BN = kept_BN / kept_BN.sum(axis=1, keepdims=True)
        share_N = table["count"].to_numpy() / table["count"].sum()
        documents = len([part for part in layer.documents.values() if part])
        scale = math.sqrt(documents / max(documents - 1, 1))
        freedom = 1 / (1 / max(documents - 1, 1) + 1 / len(share_BN))
        t_values = {}
        for one, other in permutations(layer.experts, 2):
            spread = np.std(share_BN[:, one] - share_BN[:, other], ddof=1) * scale
            more = share_N[one] - share_N[other]
            alone = (share_N[one] + share_N[other] - more**2) / table["count"].sum()
            t = more / max(spread, math.sqrt(alone)) if spread > 1e-9 * abs(more) else 0.0
            t_values[one, other] = t
        less: Counter[int] = Counter()
        for tested, (pair, t) in enumerate(sorted(t_values.items(), key=lambda item: -item[1])):
            if stdtr(freedom, -t) * (len(t_values) - tested) > 0.05:
                break
            less[pair[0]] += 1
        number = max(round(0.1 * layer.spec.num_experts), 1)
        expected = [less[expert] < number for expert in layer.experts]
        assert table["maybe_bottom_tenth"].tolist() == expected
        assert sum(expected) >= number


def test_documents_and_subjects(case: Case) -> None:
    for layer, row in case.rows("experts"):
        uses = [layer.count(row["expert"], part) > 0 for part in layer.proper_documents]
        assert row["documents"] == sum(uses)
        longest = max(map(len, "".join("x" if used else "." for used in uses).split("x")))
        assert row["idle_documents"] == longest
        loads = []
        for subject in layer.subjects:
            tokens = layer.of_subject(subject)
            total = sum(len(layer.slots(token)) for token in tokens)
            if total:
                loads.append(layer.count(row["expert"], tokens) * layer.spec.num_experts / total)
        assert row["idle_subjects"] == sum(load == 0 for load in loads)
        assert row["low_subjects"] == sum(load < 0.1 for load in loads)


def test_design_effects_and_intervals(case: Case) -> None:
    for layer in case.layers:
        table = case.found.experts.query("layer == @layer.spec.layer")
        deffs = [layer.deff(expert) for expert in layer.experts]
        assert all(map(same, table["deff"], deffs))
        counts_N = np.array([layer.count(expert) for expert in layer.experts])
        wide_N = layer.interval_deffs()
        bounds = share_interval(counts_N, len(layer.tokens), wide_N, np.median(wide_N))
        mean_k = counts_N.sum() / len(layer.tokens)
        low_N, high_N = (p_N * layer.spec.num_experts / mean_k for p_N in bounds)
        # Zero at the lower end where nothing selects the expert, whatever is known.
        assert all(map(same, table["ci_low"], low_N))
        assert all(map(same, table["ci_high"], high_N))
        counts_SN = np.array(
            [[layer.count(e, layer.of_subject(s)) for e in layer.experts] for s in layer.subjects]
        )
        ratio_N = table["longest_idle_shuffled"] / table["longest_idle_expected"]
        parts = list(layer.documents.values())
        by_document = [[layer.count(e, part) for part in parts] for e in layer.experts]
        alike = [sum(c) ** 2 / max(sum(n * n for n in c), 1) for c in by_document]
        expected = tiers(counts_SN, high_N, ratio_N.to_numpy(), np.array(alike))
        assert table["tier"].tolist() == expected.tolist()


def test_idle_runs(case: Case) -> None:
    for layer in case.layers:
        orders = [Order("shuffle-docs", seed) for seed in range(SHUFFLES)]
        streams = [
            [
                token
                for number in order.documents(np.zeros(len(case.documents))).tolist()
                for token in layer.documents.get(case.documents[number], [])
            ]
            for order in orders
        ]
        table = case.found.experts.query("layer == @layer.spec.layer")
        for row in table.to_dict("records"):
            runs = layer.runs(row["expert"])
            assert row["longest_idle"] == max(runs)
            assert (row["leading_idle"], row["current_idle"]) == (runs[0], runs[-1])
            longest = [max(layer.runs(row["expert"], stream)) for stream in streams]
            assert row["longest_idle_shuffled"] == np.median(longest)
            steps = np.array(runs[1:-1]) + 1
            index = math.nan
            if len(steps) > 1:
                index = (steps.std() - steps.mean()) / (steps.std() + steps.mean())
            assert same(row["burstiness_index"], index)


def test_runs_against_chance(case: Case) -> None:
    for layer, row in case.rows("experts"):
        tokens, p = len(layer.tokens), row["frequency"]
        fair = sum(len(layer.slots(t)) for t in layer.tokens) / tokens / layer.spec.num_experts
        own_run, fair_run = (float(expected_longest_run(rate, tokens)) for rate in (p, fair))
        assert same(row["longest_idle_expected"], own_run)
        longest = row["longest_idle_shuffled"]
        assert same(row["rate_deficit"], math.log(own_run / fair_run) if own_run else math.nan)
        known = longest > 0 and own_run > 0
        assert same(row["burstiness"], math.log(longest / own_run) if known else math.nan)
        p_own = float(p_longest_at_least(p, tokens, longest)) if p else math.nan
        assert same(row["p_own"], p_own)
        assert same(row["p_fair"], float(p_longest_at_least(fair, tokens, longest)))


@pytest.mark.parametrize("rate", ["own", "fair"])
def test_gap_tests_are_adjusted_over_all_experts(case: Case, rate: str) -> None:
    # The definition: of all p from this one on, the least number of tests times p over its rank.
    known = case.found.experts.dropna(subset=f"p_{rate}")
    for _, row in known.iterrows():
        above = [p for p in known[f"p_{rate}"] if p >= row[f"p_{rate}"]]
        ranks = [(known[f"p_{rate}"] <= p).sum() for p in above]
        q = min(len(known) * p / rank for p, rank in zip(above, ranks, strict=True))
        assert same(row[f"q_{rate}"], q)
    assert case.found.experts[f"q_{rate}"].notna().sum() == len(known) > 0


def test_idle_windows(case: Case) -> None:
    for layer, row in case.rows("idle_windows"):
        tokens, window = len(layer.tokens), row["window"]
        runs = [run for run in layer.runs(row["expert"]) if run >= window]
        assert row["runs"] == len(runs)
        assert same(row["share"], sum(runs) / tokens)
        assert row["sliding"] == sum(run - window + 1 for run in runs)
        p = layer.count(row["expert"]) / tokens
        assert same(row["expected_runs"], float(expected_runs(p, tokens, window)))
        idle = (1 - p) ** window
        assert same(row["expected_sliding"], max(tokens - window + 1, 0) * idle)
        assert same(row["expected_share"], float(expected_idle_share(p, tokens, window)))
        load = row["load_expected"]
        assert math.isnan(load) == (window >= tokens)
        if window < tokens:
            fair = sum(len(layer.slots(t)) for t in layer.tokens) / tokens / layer.spec.num_experts
            assert expected_longest_run(load * fair, tokens) == pytest.approx(window)
    assert len(case.found.idle_windows) == 3 * sum(layer.spec.num_experts for layer in case.layers)


def test_slots(case: Case) -> None:
    for layer, row in case.rows("slots"):
        chosen = [layer.slots(t) for t in layer.tokens if row["expert"] in layer.slots(t)]
        here = [slots.index(row["expert"]) == row["slot"] - 1 for slots in chosen]
        assert row["count"] == sum(here)
        assert same(row["frequency"], sum(here) / len(layer.tokens))
        assert same(row["share"], float(np.mean(here)) if here else math.nan)
    assert len(case.found.table("slots")) == sum(
        layer.spec.num_experts * layer.spec.top_k for layer in case.layers
    )


def naive_indices(loads: list[float]) -> dict[str, float]:
    """Every index of loads, from sums over sorted lists."""
    number, total = len(loads), sum(loads)
    share = sorted(load / total for load in loads)
    fair = [number * q for q in share]
    information = -sum(q * math.log(q) for q in share if q)
    square = sum(q * q for q in share)
    one, ten = math.ceil(number / 100), math.ceil(number / 10)
    low, high = np.percentile(share, [5, 95])
    return {
        "max_load": fair[-1],
        "max_vio": fair[-1] - 1,
        "min_vio": 1 - fair[0],
        "cv": math.sqrt(sum((load - 1) ** 2 for load in fair) / number),
        "gini": sum(abs(a - b) for a in share for b in share) / (2 * number),
        "entropy": information,
        "entropy_normalised": information / math.log(number),
        "effective_experts": math.exp(information),
        "inverse_simpson": 1 / square,
        "jain": 1 / (number * square),
        "kl_uniform": math.log(number) - information,
        "total_variation": sum(max(q - 1 / number, 0) for q in share),
        "top_share_1": sum(share[-one:]),
        "top_share_10": sum(share[-ten:]),
        "bottom_share_1": sum(share[:one]),
        "bottom_share_10": sum(share[:ten]),
        "tail_ratio": high / low if low else math.nan,
        "unseen": sum(not q for q in share),
    }


def test_indices(case: Case) -> None:
    found = case.found.table("indices")
    for layer in case.layers:
        slots = [layer.slots(token) for token in layer.tokens]
        rows = {
            "choices": [e for chosen in slots for e in chosen],
            "first choices": [chosen[0] for chosen in slots if chosen],
        }
        # As many experts as every token selects have all, or one.
        sizes = {len(chosen) for chosen in slots}
        fewest = {"choices": sizes.pop() if sizes == {layer.spec.top_k} else 1, "first choices": 1}
        for of, chosen in rows.items():
            table = found.query("layer == @layer.spec.layer and of == @of").set_index("index")
            loads = [float(chosen.count(expert)) for expert in layer.experts]
            worst = [float(expert < fewest[of]) for expert in layer.experts]
            named = {"value": loads, "perfect": [1.0] * len(loads), "worst": worst}
            for column, values in named.items():
                for name, value in naive_indices(values).items():
                    expected = math.nan if (column, name) == ("worst", "tail_ratio") else value
                    assert same(table[column][name], expected), (of, column, name)
            assert list(table.index) == list(naive_indices(loads))


def test_indices_of_devices(case: Case) -> None:
    found, some = case.found.table("indices"), case.found.table("devices")["devices"].tolist()
    for layer in case.layers:
        num, tokens = layer.spec.num_experts, len(layer.tokens)
        for devices in some:
            table = found.query("layer == @layer.spec.layer and of == f'{@devices} devices'")
            table = table.set_index("index")
            each = num // devices
            held = [range(d * each, (d + 1) * each) for d in range(devices)]
            loads = [float(sum(layer.count(e) for e in experts)) for experts in held]
            for name, value in naive_indices(loads).items():
                assert same(table["value"][name], value), name
            sizes = [len(layer.slots(token)) for token in layer.tokens]
            varied = sum(k / num * (1 - k / num) for k in sizes) * each * (num - each) / (num - 1)
            fair = sum(sizes) / devices
            assert same(table["null"]["cv"], math.sqrt(varied) / fair), (devices, tokens)


def test_indices_say_what_layers_say(case: Case) -> None:
    layers = case.found.layers.set_index("layer")
    table = case.found.table("indices").query("of == 'choices'").set_index(["layer", "index"])
    for layer in layers.index:
        for name in ("max_vio", "cv", "gini", "entropy", "kl_uniform", "total_variation", "unseen"):
            row = table.loc[(layer, name)]
            ends = {"value": "", "null": "_null", "noise": "_noise"}
            for column, end in ends.items():
                assert same(row[column], float(layers[name + end][layer])), (name, column)
            assert same(row["excess"], row["value"] - row["null_effective"])
        effective = table.loc[(layer, "cv"), "null"] * math.sqrt(layers["deff_mean"][layer])
        assert same(table.loc[(layer, "cv"), "null_effective"], effective)


def test_layers(case: Case) -> None:
    for layer, row in case.rows("layers"):
        num, tokens = layer.spec.num_experts, len(layer.tokens)
        counts = [layer.count(expert) for expert in layer.experts]
        total = sum(counts)
        assert (row["tokens"], row["assignments"]) == (tokens, total)
        loads = np.array(layer.loads)
        assert same(row["max_vio"], loads.max() - 1)
        assert same(row["cv"], loads.std())
        assert same(row["gini"], np.abs(loads[:, None] - loads).mean() / 2)
        assert same(row["entropy"], entropy(counts))
        assert same(row["effective_experts"], math.exp(entropy(counts)))
        assert same(row["kl_uniform"], math.log(num) - entropy(counts))
        assert same(row["total_variation"], sum(abs(c / total - 1 / num) for c in counts) / 2)
        assert row["unseen"] == counts.count(0)
        assert same(row["deff_median"], layer.median_deff())
        deff_of = {expert: layer.corrected_deff(expert) for expert in layer.experts}
        known = {e: deff for e, deff in deff_of.items() if not math.isnan(deff)}
        weights = {e: 1 - layer.count(e) / tokens for e in known}
        mean = math.nan
        if known:
            mean = sum(known[e] * weights[e] for e in known) / sum(weights.values())
        assert same(row["deff_mean"], mean)
        assert same(row["tokens_effective"], tokens / mean)
        assert row["documents"] == len(layer.documents)
        wide_N = layer.interval_deffs()
        certain = min(3 * max(np.median(wide_N), wide_N[NEVER], 1) / tokens, 1)
        assert same(row["certifiable_load"], certain * num / (total / tokens))
        cover = next(m for m in range(1, num + 1) if 2 * sum(sorted(counts)[-m:]) >= total)
        assert row["experts_for_half"] == cover
        sizes = [len(layer.slots(token)) for token in layer.tokens]
        assert same(row["mean_k"], np.mean(sizes))
        assert same(row["null_k"], sum(k * k for k in sizes) / sum(sizes))


def test_layers_against_even_routing(case: Case) -> None:
    experts = sum(layer.spec.num_experts for layer in case.layers)
    for layer, row in case.rows("layers"):
        num, tokens = layer.spec.num_experts, len(layer.tokens)
        counts = [layer.count(expert) for expert in layer.experts]
        sizes = [len(layer.slots(token)) for token in layer.tokens]
        fair = sum(counts) / tokens / num
        for name, limit in (("below_1", 0.01), ("below_10", 0.1), ("below_50", 0.5)):
            assert row[name] == sum(load < limit for load in layer.loads)
            few = sum(
                math.comb(tokens, c) * fair**c * (1 - fair) ** (tokens - c)
                for c in range(tokens)
                if c < limit * fair * tokens
            )
            assert same(row[f"{name}_null"], num * few)
        # Each token varies by (k_t / N) (1 - k_t / N), whatever k_t is.
        each = sum(k / num * (1 - k / num) for k in sizes)
        squares = sum((c - sum(counts) / num) ** 2 for c in counts)
        assert same(row["chi_square"], (num - 1) / num * squares / each)
        assert row["chi_square_null"] == num - 1
        assert same(row["chi_square_p"], float(chi2.sf(row["chi_square"], num - 1)))
        deffs = [layer.deff(e, list(layer.documents.values())) for e in layer.experts]
        variance = sum(
            deff * (c / tokens) * (1 - c / tokens) / tokens
            for deff, c in zip(deffs, counts, strict=True)
            if 0 < c < tokens
        )
        noise = num * variance / (sum(counts) / tokens) ** 2
        assert same(row["load_variance"], np.var(layer.loads) - noise)
        assert same(row["load_variance_null_sd"], noise * math.sqrt(2 / (num - 1)))
        assert same(row["longest_idle_fair"], float(expected_longest_run(fair, tokens)))
        bound = row["longest_idle_fair_95"]
        runs = experts * (1 - fair) ** bound * (1 + (tokens - bound) * fair)
        assert runs == pytest.approx(-math.log(0.95)) or bound == tokens
        spread = float(sd_longest_run(fair, tokens))
        assert same(row["longest_idle_fair_sd"], spread)
        assert math.isnan(spread) == (tokens * fair < 20)


def halves_null(layer: NaiveLayer, shares: list[list[int]]) -> float:
    """(N - k) / 8 (1 / A1 + 1 / A2) bits, times the design effect of the documents alone."""
    parts = layer.proper_documents
    if not all(map(any, shares)):
        return math.nan
    used = [e for e in layer.experts if any(half[e] for half in shares)]
    tokens = sum(map(len, parts))
    rest = {e: 1 - sum(layer.count(e, part) for part in parts) / tokens for e in used}
    deffs = {e: layer.corrected_deff(e, parts) for e in used}
    known = [e for e in used if not math.isnan(deffs[e])]
    deff = sum(deffs[e] * rest[e] for e in known) / sum(rest[e] for e in known)
    unit = (len(used) - layer.spec.top_k) / 8 * sum(1 / sum(half) for half in shares)
    return min(deff * unit / math.log(2), 1.0)


def test_halves_and_what_is_unseen(case: Case) -> None:
    for layer, row in case.rows("layers"):
        parts = layer.proper_documents
        shares = [[layer.count(e, half) for e in layer.experts] for half in layer.halves]
        divergence = math.nan
        if all(map(any, shares)):
            unit = [np.array(counts) / sum(counts) for counts in shares]
            divergence = (
                entropy(list(unit[0] + unit[1])) - (entropy(unit[0]) + entropy(unit[1])) / 2
            )
        assert same(row["split_half_divergence"], divergence / math.log(2))
        if not layer.spec.empty_slots:
            assert same(row["split_half_divergence_null"], halves_null(layer, shares))
        seen = [sum(layer.count(e, part) > 0 for part in parts) for e in layer.experts]
        once, twice = seen.count(1), seen.count(2)
        assert same(row["unseen_mass"], once / sum(seen))
        more = once**2 / (2 * twice) if twice else once * (once - 1) / 2
        bound = min(sum(n > 0 for n in seen) + more, layer.spec.num_experts)
        assert same(row["chao2"], max(bound, sum(layer.count(e) > 0 for e in layer.experts)))
