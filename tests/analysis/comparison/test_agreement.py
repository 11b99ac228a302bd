"""Every table of agreement, against a loop over the tokens that both traces ran."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest

from moe_probe.analysis.comparison import CompareSettings, Comparison, agreement, compare
from moe_probe.analysis.comparison.tables_agreement import ratio_interval
from moe_probe.analysis.comparison.tables_margins import chance_of_smaller
from moe_probe.analysis.reading.rules import Rule
from moe_probe.trace import LayerSpec
from tests.analysis.comparison.prompts import (
    LAYERS,
    Prompt,
    aligned,
    make_prompts,
    margin,
    route,
    write,
)

NOISE = 0.4


class Token(NamedTuple):
    """One token in one layer, in both traces."""

    prompt: Prompt
    position: int
    spec: LayerSpec
    first: list[int]
    second: list[int]
    moved: float
    margin: float


def tokens_of(prompts: list[Prompt], others: list[Prompt]) -> Iterator[list[Token]]:
    """Every aligned token, in all layers."""
    for prompt, context in aligned(prompts, others):
        layers = []
        for spec in LAYERS:
            (first, weights), (second, _) = (
                route(spec, context, noise=noise) for noise in (0, NOISE)
            )
            shares: list[dict[int, float]] = []
            for ids in (first, second):
                total = weights[ids >= 0].sum()
                shares.append(
                    {int(e): w / total for e, w in zip(ids, weights, strict=True) if e >= 0}
                )
            experts = {*shares[0], *shares[1]}
            apart = sum(abs(shares[0].get(e, 0) - shares[1].get(e, 0)) for e in experts)
            moved = apart / 2 if shares[0] and shares[1] else math.nan
            facts = (first.tolist(), second.tolist(), moved, margin(spec, context))
            layers.append(Token(prompt, len(context) - 1, spec, *facts))
        yield layers


@pytest.fixture(scope="module", params=[0, 1])
def both(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Comparison, list[list[Token]]]:
    folder = tmp_path_factory.mktemp("pair")
    prompts = make_prompts(request.param + 20, number=24)
    order = np.random.default_rng(request.param).permutation(len(prompts))
    others = [prompts[number] for number in order[: 3 * len(prompts) // 4]]
    first = write(folder / "a", prompts, noise=0)
    second = write(folder / "b", others, noise=NOISE, share=request.param == 1)
    found = compare([first, second], CompareSettings(rule=Rule.UNIQUE, threads=2))
    return found, list(tokens_of(prompts, others))


def sets(token: Token) -> tuple[set[int], set[int]]:
    first, second = ({e for e in ids if e >= 0} for ids in (token.first, token.second))
    return first, second


def overlap(token: Token) -> float:
    first, second = sets(token)
    return 2 * len(first & second) / (len(first) + len(second)) if first or second else 1.0


def same(token: Token) -> bool:
    return len({*map(frozenset, sets(token))}) == 1


def rows_of(table: pd.DataFrame, **where: Any) -> Any:
    for name, value in where.items():
        table = table[table[name] == value]
    return table


def test_layers(both: tuple[Comparison, list[list[Token]]]) -> None:
    found, tokens = both
    table = found.table("agreement")
    assert table["layer"].tolist() == [1, 3, 4]
    assert table["trace"].unique().tolist() == ["b"]
    for place, spec in enumerate(LAYERS):
        own = [layers[place] for layers in tokens]
        row = table.iloc[place]
        assert row["tokens"] == len(own) > 50
        assert row["overlap"] == pytest.approx(np.mean([*map(overlap, own)]))
        assert row["same_set"] == pytest.approx(np.mean([*map(same, own)]))
        first = [token.first[0] == token.second[0] for token in own]
        assert row["first_choice"] == pytest.approx(np.mean(first))
        assert row["weight_difference"] == pytest.approx(
            np.nanmean([t.moved for t in own]), abs=1e-6
        )
        filled = [(token.first[0] >= 0) + (token.second[0] >= 0) for token in own]
        chances = [{0: 1, 1: 0, 2: 1 / spec.num_experts}[number] for number in filled]
        assert row["first_choice_null"] == pytest.approx(np.mean(chances))
        counts = [Counter(e for t in own for e in sets(t)[side]) for side in (0, 1)]
        products = sum(counts[0][e] * counts[1][e] for e in range(spec.num_experts))
        sizes = [[*map(len, sets(token))] for token in own]
        neither = sum(not any(pair) for pair in sizes)
        size = sum(2 * a * b / (a + b) for a, b in sizes if a + b)
        chance = neither + size / spec.num_experts
        assert row["overlap_null"] == pytest.approx(chance / len(own))
        chance = neither + size * products / counts[0].total() / counts[1].total()
        assert row["overlap_null_own"] == pytest.approx(chance / len(own))


def test_intervals_resample_documents(both: tuple[Comparison, list[list[Token]]]) -> None:
    found, _ = both
    row: Any
    for row in found.table("agreement").itertuples():
        assert row.overlap_low < row.overlap < row.overlap_high
    sum_C, tokens_C = np.array([3.0, 2, 7, 0, 0]), np.array([4, 2, 9, 3, 0])
    value, half = ratio_interval(sum_C, tokens_C)
    errors = [s - n * 12 / 18 for s, n in zip(sum_C[:4], tokens_C[:4], strict=True)]
    # 3.182 is Student's 97.5 % quantile for the three degrees of freedom of four documents.
    expected = 3.182446 * math.sqrt(4 / 3 * sum(error**2 for error in errors)) / 18
    assert [value, half] == pytest.approx([12 / 18, expected])
    assert math.isnan(ratio_interval(sum_C[:1], tokens_C[:1])[1])


def test_subjects_and_positions(both: tuple[Comparison, list[list[Token]]]) -> None:
    found, tokens = both
    subjects, positions = (found.table(f"agreement_{name}") for name in ("subjects", "positions"))
    for place, spec in enumerate(LAYERS):
        own = [layers[place] for layers in tokens]
        for subject in "ab":
            part = [token for token in own if token.prompt.subject == subject]
            row = rows_of(subjects, layer=spec.layer, subject=subject).iloc[0]
            assert row["tokens"] == len(part)
            assert row["overlap"] == pytest.approx(np.mean([*map(overlap, part)]))
            assert row["same_set"] == pytest.approx(np.mean([*map(same, part)]))
        mine = rows_of(positions, layer=spec.layer)
        assert mine["tokens"].sum() == len(own)
        for row in mine.itertuples():
            part = [token for token in own if row.first <= token.position <= row.last]
            assert row.tokens == len(part)
            assert row.overlap == pytest.approx(np.mean([*map(overlap, part)]))
            assert row.same_set == pytest.approx(np.mean([*map(same, part)]))


def test_depths(both: tuple[Comparison, list[list[Token]]]) -> None:
    found, tokens = both
    first: Counter[int | None] = Counter()
    number: Counter[int] = Counter()
    for layers in tokens:
        differing = [token.spec.layer for token in layers if not same(token)]
        first[differing[0] if differing else None] += 1
        number[len(differing)] += 1
    table = found.table("first_divergence")
    layers_of = [None if pd.isna(layer) else layer for layer in table["layer"]]
    assert layers_of == [1, 3, 4, None]
    assert table["tokens"].tolist() == [first[layer] for layer in layers_of]
    assert table["share"].tolist() == [n / len(tokens) for n in table["tokens"]]
    table = found.table("differing_layers")
    assert table["tokens"].tolist() == [number[n] for n in range(4)]
    assert table["share"].sum() == pytest.approx(1)


def test_slots_and_margins(both: tuple[Comparison, list[list[Token]]]) -> None:
    found, tokens = both
    slots, margins, bins = (found.table(n) for n in ("lost_slots", "margins", "margin_bins"))
    assert margins["layer"].tolist() == [1, 3]
    for place, spec in enumerate(LAYERS):
        own = [layers[place] for layers in tokens]
        lost = [
            sum(t.first[slot] >= 0 and t.first[slot] not in t.second for t in own)
            for slot in range(spec.top_k)
        ]
        mine = rows_of(slots, layer=spec.layer)
        assert mine["lost"].tolist() == lost
        assert mine["share_of_lost"].tolist() == [n / sum(lost) for n in lost]
        if not spec.scalars:
            continue
        row = rows_of(margins, layer=spec.layer).iloc[0]
        other, equal = ([t.margin for t in own if same(t) is kind] for kind in (False, True))
        assert (row["different_tokens"], row["same_tokens"]) == (len(other), len(equal))
        pairs = [(a < b) + (a == b) / 2 for a in other for b in equal]
        assert row["smaller"] == pytest.approx(np.mean(pairs))
        # Margins are powers of two, each the lower end of its octave.
        for cell in rows_of(bins, layer=spec.layer).itertuples():
            part = [same(t) for t in own if cell.margin_low <= t.margin < cell.margin_high]
            assert cell.tokens == len(part)
            assert cell.different == pytest.approx(part.count(False) / len(part))


def test_margins_are_of_the_trace_that_has_them(tmp_path: Path) -> None:
    prompts = make_prompts(5)
    plain = write(tmp_path / "plain", prompts, noise=NOISE, capture="ids")
    whole = write(tmp_path / "whole", prompts, noise=0)
    tables = [compare(pair).table("margins") for pair in ([plain, whole], [whole, plain])]
    assert [table["margins_of"].unique().tolist() for table in tables] == [["whole"]] * 2
    columns = ["layer", "same_tokens", "same_q50", "different_tokens", "different_q50", "smaller"]
    pd.testing.assert_frame_equal(tables[0][columns], tables[1][columns])
    assert tables[0]["different_tokens"].min() > 10
    assert compare([plain, plain]).table("margins").empty


def test_chance_of_smaller_of_nothing() -> None:
    assert math.isnan(chance_of_smaller(np.array([0, 0]), np.array([1, 2])))


def test_few_parts_in_memory_give_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = make_prompts(3, number=40)
    traces = [
        write(tmp_path / "a", prompts, noise=0),
        write(tmp_path / "b", prompts[::-1], noise=NOISE),
    ]
    tables = []
    for kept in (1, 100):
        monkeypatch.setattr(agreement, "_KEPT_PARTS", kept)
        found = compare(traces, CompareSettings(rule=Rule.RAW))
        tables.append(found.table("agreement"))
    assert len(traces[1].routing_parts) > 3
    pd.testing.assert_frame_equal(tables[0], tables[1])
    # The rule raw counts a token as often as the reference ran it.
    assert tables[0]["tokens"].iloc[0] == sum(len(p.tokens) * p.multiplicity for p in prompts)
