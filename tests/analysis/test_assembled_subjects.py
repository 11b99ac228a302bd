"""The tables of subjects, pairs and repeats as assembled, against loops over single tokens."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from itertools import combinations, permutations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest

from moe_probe.analysis.results import TABLES, Analysis, analyse
from moe_probe.trace import LayerSpec, TraceWriter
from moe_probe.trace.schema import Sequence
from tests.analysis.naive import NaiveLayer, entropy
from tests.analysis.streams import LAYERS, NEVER, Token, make_stream

SMALL = (LAYERS[0], LAYERS[2], LAYERS[3])
LAGS = (1, 2, 4, 8, 16, 32, 64)
EMPTY = "statistics"
"""A subject that has a prefix and no documents."""


class Case(NamedTuple):
    found: Analysis
    layers: list[NaiveLayer]
    recorded: list[Token]
    """The counted tokens, as recorded."""

    def table(self, name: str, layer: NaiveLayer) -> pd.DataFrame:
        table = self.found.table(name)
        return table[table["layer"] == layer.spec.layer]


@pytest.fixture(scope="module", params=["unique", "question"])
def case(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Case:
    rule = request.param
    path = tmp_path_factory.mktemp("stream") / "trace"
    _, tokens = make_stream(path, 6, documents=100, layers=SMALL)
    tokens += add_prefix_alone(path, SMALL)
    if rule == "question":
        tokens = [token for token in tokens if token.subject != EMPTY and token.document[0]]
    options: Any = {"shuffles": 1, "replicates": 3, "permutations": 9}
    layers = [NaiveLayer.of(tokens, spec) for spec in SMALL]
    return Case(analyse(path, rule=rule, **options), layers, tokens)


def add_prefix_alone(path: Path, layers: tuple[LayerSpec, ...]) -> list[Token]:
    with TraceWriter(path, layers=list(layers), segment_tokens=64, resume=True) as writer:
        number = writer.next_sequence_id()
        sequence = Sequence(
            sequence_id=number, num_tokens=4, task="t", subject=EMPTY, doc_id=0, prefix_end=4
        )
        ids = [np.tile(np.array([0, 1, 3])[: spec.top_k], (4, 1)) for spec in layers]
        token_id_T = np.arange(4, dtype=np.int32)
        writer.write(sequence, writer.layout.pack(ids), token_id_T=token_id_T)
    experts = {spec.layer: [0, 1, 3][: spec.top_k] for spec in layers}
    facts = EMPTY, (1, 0), number
    return [Token(*facts, position, position, experts) for position in range(4)]


def same(found: Any, expected: Any) -> bool:
    """Equal up to rounding; null is NaN."""
    if pd.isna(found) or math.isnan(expected):
        return bool(pd.isna(found) and math.isnan(expected))
    return bool(found == pytest.approx(expected, abs=1e-9))


def test_a_subject_without_documents_is_null(case: Case) -> None:
    table = case.found.subjects.query("subject == @EMPTY")
    assert len(table) == sum(layer.spec.num_experts for layer in case.layers)
    assert table[["log_odds", "z", "q_value"]].isna().all(axis=None)
    is_counted = EMPTY in case.layers[0].subjects
    assert table["frequency"].notna().all() == table["count"].any() == is_counted


def test_subjects(case: Case) -> None:
    for layer in case.layers:
        total = [layer.count(expert) for expert in layer.experts]
        for row in case.table("subjects", layer).to_dict("records"):
            tokens, expert = layer.of_subject(row["subject"]), row["expert"]
            here, others = layer.count(expert, tokens), [t for t in layer.tokens if t not in tokens]
            assert row["count"] == here
            assert same(row["frequency"], here / len(tokens) if tokens else math.nan)
            rest = layer.count(expert, others) / len(others)
            known = tokens and rest
            assert same(row["lift"], here / len(tokens) / rest if known else math.nan)
            assert row["expert"] != NEVER or math.isnan(row["log_odds"])
            if row["subject"] != EMPTY and expert != NEVER:
                size = sum(len(layer.slots(token)) for token in tokens)
                odds = log_odds(here, size, total[expert], sum(total))
                assert same(row["log_odds"], odds)


def log_odds(here: int, size: int, count: int, total: int) -> float:
    """With a hundredth of all selections as a prior."""
    prior = 0.01 * count
    inside, outside = here + prior, count - here + prior
    odds = inside / (size + 0.01 * total - inside)
    return math.log(odds / (outside / (total - size + 0.01 * total - outside)))


def test_z_and_q_values(case: Case) -> None:
    p_values = []
    for layer in case.layers:
        total = sum(layer.count(expert) for expert in layer.experts)
        for row in case.table("subjects", layer).to_dict("records"):
            if math.isnan(row["z"]):
                continue
            tokens = layer.of_subject(row["subject"])
            documents = [
                part for (name, _), part in layer.documents.items() if name == row["subject"]
            ]
            deff = max(layer.median_deff(documents), within_deff(layer, row["expert"]))
            size = sum(len(layer.slots(token)) for token in tokens)
            count, prior = layer.count(row["expert"]), 0.01 * layer.count(row["expert"])
            variance = 0.0
            for here, side in ((row["count"], size), (count - row["count"], total - size)):
                variance += side / (side + 0.01 * total) / (here + prior)
            assert same(row["z"], row["log_odds"] / math.sqrt(variance * deff))
            each = [len(layer.slots(token)) for token in layer.tokens]
            fair = sum(each) / len(each) / layer.spec.num_experts
            assert same(row["frequency_null"], fair)
            spread = fair - sum(k * k for k in each) / len(each) / layer.spec.num_experts**2
            chance = math.sqrt(spread * layer.median_deff(documents) / len(tokens))
            assert same(row["frequency_null_sd"], chance)
            p_values.append(math.erfc(abs(row["z"]) / math.sqrt(2)))
    q_values = case.found.subjects["q_value"].dropna().to_numpy()
    ordered = sorted(p_values)
    for p, q in zip(p_values, q_values, strict=True):
        later = range(ordered.index(p), len(ordered))
        assert q == pytest.approx(min(ordered[i] * len(ordered) / (i + 1) for i in later))


def within_deff(layer: NaiveLayer, expert: int) -> float:
    """Variance inside subjects; a lone document is centred on all."""
    tokens = len(layer.tokens)
    p, variance = layer.count(expert) / tokens, 0.0
    for subject in layer.subjects:
        parts = [part for (name, _), part in layer.documents.items() if name == subject]
        own = layer.of_subject(subject)
        mean = layer.count(expert, own) / len(own) if len(parts) > 1 else p
        squares = sum((layer.count(expert, part) - mean * len(part)) ** 2 for part in parts)
        variance += squares * (len(parts) / (len(parts) - 1) if len(parts) > 1 else 1)
    return variance / tokens / (p * (1 - p))


def test_design_effect_within_subjects(case: Case) -> None:
    """All of the variance of documents but that between subjects."""
    for layer in case.layers:
        row = case.table("layers", layer).to_dict("records")[0]
        used = [e for e in layer.experts if 0 < layer.count(e) < len(layer.tokens)]
        assert same(row["deff_within"], float(np.median([within_deff(layer, e) for e in used])))


def information(layer: NaiveLayer, groups: list[list[Token]]) -> float:
    """Mutual information of expert and group, in nats."""
    joint = [layer.count(e, group) for group in groups for e in layer.experts]
    experts = [sum(layer.count(e, group) for group in groups) for e in layer.experts]
    sizes = [sum(len(layer.slots(token)) for token in group) for group in groups]
    return entropy(experts) + entropy(sizes) - entropy(joint)


def test_specialization(case: Case) -> None:
    for layer in case.layers:
        row = case.table("specialization", layer).to_dict("records")[0]
        groups = [layer.of_subject(subject) for subject in layer.subjects]
        found = information(layer, groups)
        assert same(row["mutual_information_bits"], found / math.log(2))
        sizes = [sum(len(layer.slots(token)) for token in group) for group in groups]
        assert same(row["uncertainty"], found / entropy(sizes))
        within = sum(
            size / sum(sizes) * (math.log(layer.spec.num_experts) - entropy(counts))
            for size, group in zip(sizes, groups, strict=True)
            for counts in [[layer.count(e, group) for e in layer.experts]]
        )
        assert same(row["mean_subject_kl"], within)
        assert same(row["pooled_kl"], within - found)
        documents = [[token for token in group if token.document[0]] for group in groups if group]
        assert same(row["documents_bits"], information(layer, documents) / math.log(2))
        of_documents = [token for group in documents for token in group]
        counts = [layer.count(e, of_documents) for e in layer.experts]
        uneven = math.log(layer.spec.num_experts) - entropy(counts)
        assert same(row["documents_pooled_kl"], uneven if of_documents else math.nan)
        assert row["balanced_decodability_null"] == 1 / len(groups)
        unit = layer.spec.num_experts / (2 * sum(sizes)) * (1 - null_share(layer))
        assert same(row["pooled_kl_null"], unit * mean_deff(layer, NaiveLayer.corrected_deff))
        inside = [NaiveLayer(group, layer.spec) for group in groups if group]
        deffs = [mean_deff(part, NaiveLayer.corrected_deff) for part in inside]
        assert same(row["mean_subject_kl_null"], unit * sum(deffs))
        sizes = [size for size in sizes if size]
        used = sum(layer.count(e) > 0 for e in layer.experts)
        free = used - null_share(layer) * layer.spec.num_experts
        lost = sum(d * (1 - n / sum(sizes)) for d, n in zip(deffs, sizes, strict=True))
        bias = free * lost / (2 * sum(sizes) * math.log(2))
        assert same(row["plug_in_bias_bits"], bias)


def null_share(layer: NaiveLayer) -> float:
    """k / N at the k that the token of a selection has in the mean."""
    sizes = [len(layer.slots(token)) for token in layer.tokens]
    return sum(k * k for k in sizes) / sum(sizes) / layer.spec.num_experts


def test_decomposition_of_fair_routing(tmp_path: Path) -> None:
    """The mean over layers, each routed anew; one-token documents of four subjects."""
    rng = np.random.default_rng(0)
    specs = [LayerSpec(layer=n, num_experts=16, top_k=2) for n in range(60)]
    with TraceWriter(tmp_path / "trace", layers=specs) as writer:
        for number in range(400):
            ids = [np.argsort(rng.random((1, 16)))[:, :2] for _ in specs]
            writer.add(ids, doc_id=number, subject="aab"[number % 3] + "c" * (number % 2))
    found = analyse(tmp_path / "trace", shuffles=1, replicates=2, permutations=2).specialization
    for name in ("mean_subject_kl", "pooled_kl"):
        assert found[name].mean() == pytest.approx(found[f"{name}_null"].mean(), rel=0.1)


def test_noise_of_subjects_that_are_alike(tmp_path: Path) -> None:
    """The mean over layers, each with experts of its own that documents use in bursts."""
    rng = np.random.default_rng(1)
    specs = [LayerSpec(layer=n, num_experts=32, top_k=3) for n in range(24)]
    chance_LN = [rng.gamma(0.5, size=32) for _ in specs]
    with TraceWriter(tmp_path / "trace", layers=specs) as writer:
        for number in range(150):
            shape = (int(rng.integers(10, 60)), 32)
            bursts = [np.log(chance_N * rng.gamma(1.0, size=32) + 1e-12) for chance_N in chance_LN]
            ids = [np.argsort(-(burst + rng.gumbel(size=shape)))[:, :3] for burst in bursts]
            writer.add(ids, doc_id=number, subject="ab"[number % 2])
    found = analyse(tmp_path / "trace", shuffles=1, replicates=2, permutations=2)
    apart, specialization = found.table("divergence"), found.specialization
    noise = apart["divergence_null_bits"].mean()
    assert apart["divergence_bits"].mean() == pytest.approx(noise, rel=0.1)
    bias = specialization["plug_in_bias_bits"].mean()
    assert specialization["mutual_information_bits"].mean() == pytest.approx(bias, rel=0.1)


def test_experts_that_subjects_do_without(case: Case) -> None:
    for layer in case.layers:
        for row in case.table("subject_coverage", layer).to_dict("records"):
            tokens = layer.of_subject(row["subject"])
            counts, number = [layer.count(e, tokens) for e in layer.experts], len(tokens)
            assert row["tokens"] == number
            fair = sum(counts) / len(counts)
            known = math.nan if not sum(counts) else 1.0
            assert same(row["unseen"], counts.count(0) * known)
            assert same(row["low"], sum(count < 0.1 * fair for count in counts) * known)
            if sum(counts):
                rate = fair / number
                assert same(row["unseen_null"], len(counts) * (1 - rate) ** number)


def test_distances_of_subjects(case: Case) -> None:
    for layer in case.layers:
        for row in case.table("divergence", layer).to_dict("records"):
            texts = [layer.of_subject(row[name]) for name in ("subject", "other")]
            counts = np.array([[layer.count(e, text) for e in layer.experts] for text in texts])
            if not counts.any(axis=1).all():
                assert pd.isna(row["hellinger"])
                assert pd.isna(row["top_jaccard"])
                continue
            one, other = np.sqrt(counts / counts.sum(axis=1, keepdims=True))
            assert same(row["hellinger"], math.sqrt(max(1 - float(one @ other), 0)))
            tops = [
                {e for e in sorted(layer.experts, key=lambda e: -c[e])[: layer.spec.top_k] if c[e]}
                for c in counts.tolist()
            ]
            overlap = len(tops[0] & tops[1]) / len(tops[0] | tops[1])
            assert same(row["top_jaccard"], overlap)
            k, number = layer.spec.top_k, layer.spec.num_experts
            ways = [math.comb(k, x) * math.comb(number - k, k - x) for x in range(k + 1)]
            chance = sum(w * x / (2 * k - x) for x, w in enumerate(ways)) / math.comb(number, k)
            assert same(row["top_jaccard_null"], chance)


def test_what_is_selected_at_the_first_position(case: Case) -> None:
    for layer in case.layers:
        at_first = [token for token in layer.tokens if token.position == 0]
        total = sum(len(layer.slots(token)) for token in layer.tokens)
        for row in case.table("positions", layer).to_dict("records"):
            inside = [t for t in layer.tokens if row["first"] <= t.position <= row["last"]]
            assert same(row["selection_share"], sum(len(layer.slots(t)) for t in inside) / total)
        bound = {
            expert: layer.count(expert, at_first)
            for expert in layer.experts
            if layer.count(expert, at_first) * 2 > layer.count(expert)
        }
        table = case.table("first_position", layer)
        assert dict(zip(table["expert"], table["count"], strict=True)) == bound
        assert set(table["share_null"]) <= {len(at_first) / len(layer.tokens)}
        assert table["share"].tolist() == [
            n / layer.count(e) for e, n in zip(table["expert"], table["count"], strict=True)
        ]


def test_noise_of_positions_is_that_of_documents_in_both(tmp_path: Path) -> None:
    """The mean over layers of documents that route alike from their first to their last token."""
    rng = np.random.default_rng(2)
    specs = [LayerSpec(layer=n, num_experts=24, top_k=3) for n in range(40)]
    with TraceWriter(tmp_path / "trace", layers=specs) as writer:
        for number in range(60):
            shape = (int(rng.integers(5, 120)), 24)
            bursts = [rng.normal(size=24) for _ in specs]
            ids = [np.argsort(-(burst + rng.gumbel(size=shape)))[:, :3] for burst in bursts]
            writer.add(ids, doc_id=number)
    found = analyse(tmp_path / "trace", shuffles=1, replicates=2, permutations=2)
    assert found.layers["deff_median"].min() > 5
    means = found.table("positions").groupby("first")[["divergence", "divergence_null"]].mean()
    assert list(means.index) == [0, 1, 2, 4, 8, 16, 32, 64]
    ratio = means["divergence"] / means["divergence_null"]
    assert ratio.tolist() == pytest.approx([1] * len(ratio), rel=0.2)


def mean_deff(layer: NaiveLayer, deff: Callable[[NaiveLayer, int], float]) -> float:
    """Over the experts, weighted by the share of tokens that do not select each; 1 if unknown."""
    rest = {e: 1 - layer.count(e) / len(layer.tokens) for e in layer.experts}
    found = {e: deff(layer, e) for e in layer.experts if 0 < rest[e] < 1}
    known = {e: value for e, value in found.items() if not math.isnan(value)}
    weight = sum(rest[e] for e in known)
    return sum(rest[e] * value for e, value in known.items()) / weight if known else 1.0


def test_noise_of_segments(case: Case) -> None:
    """That of documents within subjects; of the prefixes, that of one subject's against another.
    Of a document that is in both segments, what it has of its own cancels."""
    rows = case.found.sums.trace.sequences.to_pandas().set_index("sequence_id")
    ends = {number: (row["prefix_end"], row["question_end"]) for number, row in rows.iterrows()}

    def of_segment(name: str, tokens: list[Token]) -> int:
        passed = [sum(t.position >= end for end in ends[t.sequence]) for t in tokens]
        return passed.count(("prefix", "question", "cue").index(name))

    for layer in case.layers:
        if layer.spec.empty_slots:
            continue
        table = case.table("segments", layer)
        apart = [[t for t in layer.tokens if (t.document[0] == 0) == flag] for flag in (0, 1)]
        parts = [NaiveLayer(tokens, layer.spec) for tokens in apart]
        documents = mean_deff(parts[0], within_deff)
        prefixes = mean_deff(parts[1], NaiveLayer.corrected_deff) if parts[1].tokens else documents
        used = sum(layer.count(e) > 0 for e in layer.experts)
        rho = {}
        for kind, deff in ((0, prefixes), (1, documents)):
            sizes = [len(t) for (_, document), t in layer.documents.items() if document[0] == kind]
            mean = sum(n * n for n in sizes) / sum(sizes) if sizes else 1
            rho[kind] = min(max((deff - 1) / (mean - 1), 0), 1) if mean > 1 else 0
        for row in table.to_dict("records"):
            names = row["segment"], row["other"]
            total = [of_segment(name, layer.tokens) for name in names]
            noise = 0.0
            for (_, document), tokens in layer.documents.items():
                one, other = (
                    of_segment(name, tokens) / n for name, n in zip(names, total, strict=True)
                )
                own = rho[document[0]]
                noise += (1 - own) * (one / total[0] + other / total[1]) + own * (one - other) ** 2
            k = layer.spec.top_k
            expected = min((used - k) / 8 * noise / k / math.log(2), 1.0)
            assert same(row["divergence_bits_null"], expected)


def test_repeats(case: Case) -> None:
    for layer in case.layers:
        table = case.table("repeats", layer)
        assert len(table) == len(LAGS) * 4
        for row in table.to_dict("records"):
            tokens = layer.of_subject(row["subject"]) if row["subject"] else layer.tokens
            pairs = [
                (layer.slots(now), layer.slots(then), now.token_id != then.token_id)
                for then, now in zip(case.recorded, case.recorded[row["lag"] :], strict=False)
                if (now.sequence, now.document, now.position)
                == (then.sequence, then.document, then.position + row["lag"])
                and row["subject"] in ("", now.subject)
            ]
            size = sum(len(layer.slots(t)) for t in tokens) / len(tokens) if tokens else math.nan
            for prefix, chosen in (("", pairs), ("other_token_", [p for p in pairs if p[2]])):
                common = [len(set(now) & set(then)) for now, then, _ in chosen]
                first = [now[:1] == then[:1] != [] for now, then, _ in chosen]
                mean = np.mean(common) if chosen else math.nan
                assert row[f"{prefix}pairs"] == len(chosen)
                assert same(row[f"{prefix}overlap_ratio"], float(mean / size))
                assert same(row[f"{prefix}first_choice"], float(np.mean(first)) if chosen else mean)
                any_common = [number > 0 for number in common]
                assert same(row[f"{prefix}any_overlap"], np.mean(any_common) if chosen else mean)


def test_nulls_of_repeats(case: Case) -> None:
    """Of two tokens drawn at random, with replacement, and of two random sets of k."""
    for layer in case.layers:
        experts, top_k = layer.spec.num_experts, layer.spec.top_k
        table = case.table("repeats", layer)
        nulls = table.filter(regex="(first_choice|any_overlap)_null")
        assert nulls.shape[1] == 4
        assert nulls[table["subject"] != ""].isna().all(axis=None)
        found = nulls[table["subject"] == ""]
        assert len(found.drop_duplicates()) == 1
        row = found.iloc[0]
        firsts = Counter(slots[0] for slots in map(layer.slots, layer.tokens) if slots)
        total = len(layer.tokens)
        assert same(row["first_choice_null"], (sum(firsts.values()) / total) ** 2 / experts)
        own = sum((number / total) ** 2 for number in firsts.values())
        assert same(row["first_choice_null_own"], own)
        if layer.spec.empty_slots:
            assert row[["any_overlap_null", "any_overlap_null_own"]].isna().all()
        elif experts < 10:
            sets = list(combinations(range(experts), top_k))
            fair = np.mean([bool(set(sets[0]) & set(other)) for other in sets])
            assert same(row["any_overlap_null"], fair)
            if top_k == 1:
                assert row["any_overlap_null_own"] == pytest.approx(own, abs=1e-6)
            else:
                assert fair <= row["any_overlap_null_own"] <= 1


def test_coactivation(case: Case) -> None:
    for layer in case.layers:
        table = case.table("coactivation", layer).set_index(["expert", "other"])
        pairs = list(permutations(layer.experts, 2)) if layer.spec.top_k > 1 else []
        assert table.index.tolist() == pairs
        sets = [set(layer.slots(token)) for token in layer.tokens]
        for (one, other), row in zip(pairs, table.to_dict("records"), strict=True):
            both = sum({one, other} <= chosen for chosen in sets)
            either = sum(bool({one, other} & chosen) for chosen in sets)
            assert row["count"] == both
            alone = layer.count(one)
            assert same(row["conditional"], both / alone if alone else math.nan)
            assert same(row["jaccard"], both / either if either else math.nan)
            # Of fair sets of these sizes, both of a pair over one of it.
            each = sum(len(chosen) for chosen in sets)
            fair = sum(len(chosen) * (len(chosen) - 1) for chosen in sets) / each
            assert same(row["conditional_null"], fair / (layer.spec.num_experts - 1))
        if pairs:
            # The expected pairs have the margins of those counted: weights w_i w_j.
            expected = table["expected"].unstack().fillna(0).to_numpy()
            counted = table["count"].unstack().fillna(0).to_numpy()
            assert expected.sum(axis=1) == pytest.approx(counted.sum(axis=1))
            for a, b, c, d in combinations([e for e in layer.experts if e != NEVER], 4):
                cross = expected[a, b] * expected[c, d]
                assert cross == pytest.approx(expected[a, c] * expected[b, d])


def test_counts_alone(tmp_path: Path) -> None:
    """A trace without rows has the counts of one with rows, and nulls or no rows for the rest."""
    tables = []
    for name in ("ids", "counts"):
        rng = np.random.default_rng(0)
        layers = [LayerSpec(layer=2, num_experts=8, top_k=2)]
        with TraceWriter(tmp_path / name, layers=layers, capture=name) as writer:
            for number in range(8):
                ids = np.argsort(rng.random((5, 8)), axis=1)[:, :2]
                writer.add([ids], task="t", subject="ab"[number % 2], doc_id=number)
        found = analyse(tmp_path / name, replicates=3, permutations=3, shuffles=2)
        tables.append({name: found.table(name) for name in TABLES})
    rows, counts = tables
    known = ["count", "frequency", "relative_load", "idle_subjects", "low_subjects"]
    pd.testing.assert_frame_equal(rows["experts"][known], counts["experts"][known])
    assert set(counts["experts"]["idle_unit"]) == {"tokens"}
    said = ["layer", "expert", "tier", "ci_low", "idle_unit"]
    assert counts["experts"].drop(columns=[*known, *said]).isna().all(axis=None)
    assert set(counts["experts"]["tier"]) <= {"used", "not certified"}
    for name in ("max_vio", "gini", "entropy", "unseen", "tokens", "experts_for_half"):
        assert rows["layers"][name].tolist() == counts["layers"][name].tolist()
    assert counts["layers"].filter(regex="noise|deff|split|certifi|uniform_p").isna().all(axis=None)
    cells = ["layer", "expert", "subject", "count", "frequency", "lift"]
    pd.testing.assert_frame_equal(rows["subjects"][cells], counts["subjects"][cells])
    bits = "mutual_information_bits"
    assert rows["specialization"][bits].tolist() == counts["specialization"][bits].tolist()
    for name in ("idle_windows", "coactivation", "repeats", "transitions", "positions", "coverage"):
        assert counts[name].empty, name
    text = found.headline
    assert text.uneven.startswith("Counts alone do not know documents, so unevenness cannot be")
    assert text.idle == "Idle runs are unknown: they need rows, and each counted once."
