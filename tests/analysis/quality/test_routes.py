"""Q17 to Q21: rows that nobody wrote, of another token or another layer, and ids of one device.

Shape suffixes: T tokens, L layers, K slots, N experts, V vocabulary, D documents.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations, permutations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom, chi2, hypergeom

from moe_probe.analysis.accumulators.counts import LayerCounts
from moe_probe.analysis.accumulators.row_sample import RowSample
from moe_probe.analysis.quality import Check, check_trace
from moe_probe.analysis.quality.loads import experts_in_use
from moe_probe.analysis.quality.routes import _chance_of_lowest
from moe_probe.analysis.quality.shifts import dependence
from moe_probe.analysis.reading.source import Source
from moe_probe.analysis.scan import scan
from moe_probe.trace import LayerSpec, TraceWriter, open_trace

DOCUMENT = 50
VOCABULARY = 400
Shape = tuple[int, int, int]
"""Experts, slots, layers."""
TOP_1, TOP_2, TOP_6 = (16, 1, 24), (8, 2, 32), (64, 6, 4)


def text(tokens: int, seed: int) -> np.ndarray:
    """Return token ids of documents that all begin alike; ids follow Zipf's law."""
    share_V = 1 / np.arange(1, VOCABULARY + 1)
    rng = np.random.default_rng(seed)
    token_id_T = rng.choice(VOCABULARY, tokens, p=share_V / share_V.sum())
    token_id_T[::DOCUMENT] = VOCABULARY
    return np.asarray(token_id_T)


def route(
    token_id_T: np.ndarray, shape: Shape, seed: int, *, own: float = 3, before: float = 1
) -> np.ndarray:
    """Return ids [T, L, K] of a router that sees each token, the one before, topic and noise."""
    (num_experts, top_k, layers), rng = shape, np.random.default_rng(seed)
    ids_TLK = np.empty((len(token_id_T), layers, top_k), np.int64)
    is_first_T = np.arange(len(token_id_T)) % DOCUMENT == 0
    for layer in range(layers):
        taste_VN = rng.normal(size=(VOCABULARY + 1, num_experts))
        topic_DN = rng.normal(size=(len(token_id_T), num_experts))[
            : -(-len(token_id_T) // DOCUMENT)
        ]
        noise_TN = rng.normal(size=(len(token_id_T), num_experts))
        topic_TN = topic_DN[np.arange(len(token_id_T)) // DOCUMENT]
        # What a document begins with sees nothing else, so that its experts are always the same.
        noise_TN[is_first_T], topic_TN[is_first_T] = 0, 0
        score_TN = own * taste_VN[token_id_T] + noise_TN + topic_TN + rng.normal(size=num_experts)
        seen_TN = before * taste_VN[np.roll(token_id_T, 1)]
        seen_TN[is_first_T] = 0
        ids_TLK[:, layer] = np.argsort(-(score_TN + seen_TN), axis=1)[:, :top_k]
    return ids_TLK


@pytest.fixture
def checks(tmp_path: Path) -> Callable[..., dict[str, Check]]:
    """Write a trace and check it."""

    def run(
        ids_TLK: np.ndarray,
        token_id_T: np.ndarray | None = None,
        *,
        num_experts: int,
        layer_facts: dict[str, Any] | None = None,
        model: dict[str, Any] | None = None,
        **facts: Any,
    ) -> dict[str, Check]:
        layers = [
            LayerSpec(layer=layer, num_experts=num_experts, top_k=k, facts=layer_facts or {})
            for layer, k in enumerate([ids_TLK.shape[2]] * ids_TLK.shape[1])
        ]
        run = {"model_facts": model} if model else None
        with TraceWriter(tmp_path / "trace", layers=layers, run=run, force=True) as writer:
            for start in range(0, len(ids_TLK), DOCUMENT):
                here = slice(start, start + DOCUMENT)
                writer.add(
                    list(ids_TLK[here].swapaxes(0, 1)),
                    token_ids=None if token_id_T is None else token_id_T[here],
                    doc_id=start // DOCUMENT,
                    **facts,
                )
        return {check.check: check for check in check_trace(tmp_path / "trace")}

    return run


def failing(found: dict[str, Check]) -> set[str]:
    return {name for name, check in found.items() if check.status == "fail"}


@pytest.mark.parametrize(("groups", "size", "top_k"), [(1, 5, 2), (4, 2, 3), (3, 2, 2), (2, 3, 4)])
def test_chance_of_lowest_is_that_of_all_numberings(groups: int, size: int, top_k: int) -> None:
    """All sets that the lowest ids can be where groups, and experts in each, change numbers."""
    reached = set()
    for group_order in permutations(range(groups)):
        for inside in product(permutations(range(size)), repeat=groups):
            number = [
                group_order[g] * size + inside[g][e] for g in range(groups) for e in range(size)
            ]
            reached.add(frozenset(number[:top_k]))
    facts = {"num_groups": groups}
    spec = LayerSpec(layer=0, num_experts=groups * size, top_k=top_k, facts=facts)
    assert _chance_of_lowest(spec) == pytest.approx(1 / len(reached))


@pytest.mark.parametrize(("shape", "rate"), [(TOP_1, 0.01), (TOP_1, 0.002), (TOP_2, 0.01)])
def test_rows_that_nobody_wrote_are_found(checks: Any, shape: Shape, rate: float) -> None:
    experts, top_k, layers = shape
    token_id_T = text(2500, 0)
    ids_TLK = route(token_id_T, shape, 0)
    found = checks(ids_TLK, token_id_T, num_experts=experts)
    assert not failing(found)
    chance = 1 / len(list(combinations(range(experts), top_k)))
    limit = next(m for m in range(2, layers) if 2500 * binom.sf(m - 1, layers, chance) <= 1e-5)
    assert found["Q17"].expected == f"< {limit} layers of one row"
    odd = np.random.default_rng(1).permutation(2500)[: int(2500 * rate)]
    ids_TLK[odd] = np.arange(top_k)[::-1]
    found = checks(ids_TLK, token_id_T, num_experts=experts)
    assert "Q17" in failing(found)
    assert not {"Q1", "Q2", "Q3", "Q15"} & failing(found)
    assert found["Q17"].value == f"{len(odd)} of 2,500 rows, at most {layers} layers of one"


def test_rows_of_one_stage_are_found(checks: Any) -> None:
    ids_TLK = route(text(500, 0), TOP_2, 0)
    ids_TLK[40, :16] = [0, 1]
    found = checks(ids_TLK, num_experts=8)
    assert failing(found) == {"Q17"}
    ids_TLK[40, :16] = route(text(500, 0), TOP_2, 0)[40, :16]
    assert not failing(checks(ids_TLK, num_experts=8))


def test_two_layers_say_nothing_of_lowest_ids(checks: Any) -> None:
    found = checks(np.zeros((100, 2, 1), np.int64), num_experts=16)
    assert found["Q17"].reason == "such rows are normal with few experts or layers"


@pytest.mark.parametrize("shape", [TOP_1, TOP_6])
@pytest.mark.parametrize(("shift", "where"), [(1, "before"), (-1, "behind")])
def test_shifted_rows_are_found(checks: Any, shape: Shape, shift: int, where: str) -> None:
    token_id_T = text(6000, 1)
    ids_TLK = np.roll(route(token_id_T, shape, 1), shift, axis=0)
    found = checks(ids_TLK, token_id_T, num_experts=shape[0])
    # Of many layers also Q19: the experts of first tokens, all alike, are now beside other tokens.
    assert failing(found) == ({"Q18", "Q19"} if shape == TOP_1 else {"Q18"})
    words = f"rows of prompts have the experts of the token {where}: own token "
    assert found["Q18"].value.startswith(words)


def test_shifted_rows_of_generated_text_are_found(checks: Any) -> None:
    token_id_T = text(6000, 2)
    right_TLK = route(token_id_T, TOP_6, 2)
    is_generated_T = np.arange(6000) % DOCUMENT >= 28
    ids_TLK = np.where(is_generated_T[:, None, None], np.roll(right_TLK, 1, axis=0), right_TLK)
    for ids, failed in ((right_TLK, set()), (ids_TLK, {"Q18"})):
        found = checks(ids, token_id_T, num_experts=64, choice_end=28)
        assert failing(found) == failed
    assert found["Q18"].value.startswith("rows of generated text have the experts of")


@pytest.mark.parametrize(
    ("own", "before", "status"), [(3, 1, "pass"), (1, 1, "pass"), (8, 0, "pass"), (0.1, 0, "skip")]
)
def test_sound_rows_depend_on_their_own_token(
    checks: Any, own: float, before: float, status: str
) -> None:
    for seed in range(4):
        token_id_T = text(5000, seed)
        ids_TLK = route(token_id_T, (32, 4, 2), seed, own=own, before=before)
        found = checks(ids_TLK, token_id_T, num_experts=32)
        assert (found["Q18"].status, failing(found)) == (status, set())


def test_what_is_needed_to_see_shifted_rows(checks: Any) -> None:
    token_id_T = text(6000, 1)
    ids_TLK = np.roll(route(token_id_T, TOP_6, 1), 1, axis=0)
    few = "no token ids, or too few rows with one token in common that could differ"
    assert checks(ids_TLK, num_experts=64)["Q18"].reason == few
    assert checks(ids_TLK[:900], token_id_T[:900], num_experts=64)["Q18"].reason == few
    late = checks(ids_TLK, token_id_T, num_experts=64, model={"num_layers": 0})
    assert late["Q18"].reason == "layer 0 is the first: experts depend less on the token there"


def test_a_prompt_run_many_times_says_no_more_than_once(checks: Any) -> None:
    """Of the few pairs of one prompt, those with the token before in common agree by chance."""
    rng = np.random.default_rng(26)
    token_id_T, ids_TLK = rng.integers(0, 12, DOCUMENT), rng.integers(0, 8, (DOCUMENT, 1, 1))
    found = checks(np.tile(ids_TLK, (200, 1, 1)), np.tile(token_id_T, 200), num_experts=8)
    assert found["Q18"].reason.startswith("no token ids, or too few rows")
    assert failing(found) == set()


def test_a_router_that_has_one_expert_for_nearly_all_says_nothing(checks: Any) -> None:
    """30 of 10,000 rows have others, whatever the tokens: by chance as if by those before."""
    for seed in (7, 8):
        token_id_T, rng = text(10_000, seed), np.random.default_rng(seed)
        is_other_TLK = rng.random((10_000, 1, 1)) < 0.003
        ids_TLK = np.where(is_other_TLK, rng.integers(16, size=is_other_TLK.shape), 3)
        found = checks(ids_TLK, token_id_T, num_experts=16)
        assert found["Q18"].reason.startswith("no token ids, or too few rows"), seed
        assert failing(found) == set()


def test_dependence_is_that_of_all_pairs(tmp_path: Path) -> None:
    """A loop over the rows, with empty slots; the next row with the same token is its partner.

    Of rows with the same three tokens only the first is compared.
    """
    rng = np.random.default_rng(3)
    spec = LayerSpec(layer=0, num_experts=9, top_k=3, empty_slots=True)
    ids_TK = np.argsort(rng.random((120, 9)), axis=1)[:, :3]
    ids_TK[rng.random((120, 3)) < 0.2] = -1
    token_id_T = rng.integers(0, 5, 120)
    with TraceWriter(tmp_path / "trace", layers=[spec]) as writer:
        for start in (0, 70):
            here = slice(start, start + 70)
            writer.add([ids_TK[here]], token_ids=token_id_T[here])
    sample = filled(tmp_path / "trace")
    tokens = [
        tuple(
            int(token_id_T[t + step]) if (t + step) // 70 == t // 70 and 0 <= t + step < 120 else -1
            for step in (-1, 0, 1)
        )
        for t in range(120)
    ]
    kept = [t for t in range(120) if tokens[t] not in tokens[:t]]
    assert len(kept) < 100
    tokens = [tokens[t] for t in kept]
    sets = [{e for e in ids_TK[t].tolist() if e >= 0} for t in kept]
    last = len(kept) - 1

    def agreement(pairs: list[tuple[int, int]]) -> float:
        return sum(len(sets[a] & sets[b]) for a, b in pairs) / sum(len(sets[a]) for a, b in pairs)

    expected, different = [], []
    for shared, others in ((0, [1]), (1, [0, 2]), (2, [1])):
        pairs = []
        for a in range(last):
            same = (
                b for b in range(a + 1, last + 1) if tokens[b][shared] == tokens[a][shared] >= 0
            )
            b = next(same, None)
            if b is not None and all(tokens[a][other] != tokens[b][other] for other in others):
                pairs.append((a, b))
        controls = [(a, min(b + 3, last)) for a, b in pairs]
        controls = [
            (a, c)
            for (a, c), (_, b) in zip(controls, pairs, strict=True)
            if c > b and tokens[a][1] != tokens[c][1]
        ]
        base = agreement(controls)
        expected.append((agreement(pairs) - base) / (1 - base))
        different.append(len(controls) * (1 - base))
    found = dependence(sample, np.ones(120, bool))
    assert found == pytest.approx((*expected, min(different)))


def stale(ids_TLK: np.ndarray, odd: np.ndarray) -> np.ndarray:
    return np.asarray(ids_TLK[odd - 1])


def padding(ids_TLK: np.ndarray, odd: np.ndarray) -> np.ndarray:
    return np.asarray(ids_TLK[7][None])


@pytest.mark.parametrize("shape", [TOP_1, (64, 6, 8)])
@pytest.mark.parametrize("fault", [stale, padding])
def test_rows_of_another_token_are_found(checks: Any, shape: Shape, fault: Any) -> None:
    token_id_T = text(4000, 4)
    ids_TLK = route(token_id_T, shape, 4)
    odd = np.sort(np.random.default_rng(5).permutation(3999)[:60] + 1)
    ids_TLK[odd] = fault(ids_TLK, odd)
    found = checks(ids_TLK, token_id_T, num_experts=shape[0])
    assert failing(found) == {"Q19"}
    # Without token ids rows like the one before may be a run of one token.
    blind = checks(ids_TLK, num_experts=shape[0])["Q19"]
    assert blind.status == ("note" if fault is stale else "pass")
    assert checks(route(token_id_T, shape, 4), num_experts=shape[0])["Q19"].status == "pass"
    few = checks(ids_TLK[:, :2], token_id_T, num_experts=shape[0])["Q19"]
    assert few.reason.startswith("few layers, or experts in use")


def test_tokens_that_a_router_hardly_tells_apart_are_no_stale_rows(checks: Any) -> None:
    """Each of many tokens routes like its neighbour in 19 of 20 layers, so a third in all 24."""
    rng, shape = np.random.default_rng(11), TOP_1
    token_id_T = text(4000, 11)
    ids_TLK = route(token_id_T, shape, 11)
    alike = np.arange(5, 4000, 50)
    same_AL = rng.random((len(alike), shape[2])) < 0.95
    token_id_T[alike] = (token_id_T[alike - 1] + 1) % VOCABULARY
    ids_TLK[alike] = np.where(same_AL[..., None], ids_TLK[alike - 1], (ids_TLK[alike - 1] + 1) % 16)
    layers_A = same_AL.sum(axis=1)
    stale, nearly = int((layers_A == 24).sum()), int(np.isin(layers_A, (22, 23)).sum())
    assert nearly > stale > 4
    found = checks(ids_TLK, token_id_T, num_experts=16)
    assert failing(found) == set()
    assert found["Q19"].value == (
        f"{stale} of 4,000 rows like the row before, 0 like many; "
        f"{nearly} but for one or two layers, so tokens are alike"
    )
    # Buffers that were not written are alike in all layers, and soon more than those.
    ids_TLK[20::50] = ids_TLK[19::50]
    assert failing(checks(ids_TLK, token_id_T, num_experts=16)) == {"Q19"}


def test_repeated_text_is_no_row_of_another_token(checks: Any) -> None:
    """Equal tokens in a row, and what all documents begin with, have the same experts."""
    token_id_T = text(3000, 6)
    token_id_T[11::DOCUMENT] = token_id_T[10::DOCUMENT]
    ids_TLK = route(token_id_T, TOP_1, 6)
    ids_TLK[11::DOCUMENT] = ids_TLK[10::DOCUMENT]
    assert failing(checks(ids_TLK, token_id_T, num_experts=16)) == set()
    # Nor are first tokens that differ, but look the same to the router.
    token_id_T[::DOCUMENT] = np.arange(60)
    assert failing(checks(ids_TLK, token_id_T, num_experts=16)) == set()


def test_rows_are_alike_where_few_experts_are_in_use(checks: Any) -> None:
    """Collapsed routers: nearly all tokens select the same six of 64 in each of 12 layers."""
    token_id_T, rng = text(3000, 6), np.random.default_rng(6)
    order_LN = np.array([rng.permutation(64) for _ in range(12)])
    slots_TLK = np.tile(np.arange(6), (3000, 12, 1))
    slots_TLK[rng.random((3000, 12)) < 0.1, 5] = 6
    found = checks(order_LN[np.arange(12)[:, None], slots_TLK], token_id_T, num_experts=64)
    assert (failing(found), found["Q19"].status) == (set(), "skip")


@pytest.mark.parametrize("shape", [TOP_1, TOP_2, TOP_6])
def test_copied_layers_are_found(checks: Any, shape: Shape) -> None:
    ids_TLK = route(text(300, 7), shape, 7)
    ids_TLK[:, 3] = ids_TLK[:, 1]
    found = checks(ids_TLK, num_experts=shape[0])
    assert failing(found) == {"Q20"}
    assert found["Q20"].value == "layer 3 has the experts of layer 1"
    # In a trace of one row, and of rows alike, layers agree by chance.
    for tokens in (np.zeros(1, np.int64), np.full(300, 5)):
        copies = checks(ids_TLK[tokens][:, :4], num_experts=shape[0])["Q20"]
        assert copies.status == ("fail" if shape == TOP_6 else "skip")


def test_layers_without_experts_for_a_token_are_no_copies(tmp_path: Path) -> None:
    """Slots may be empty: a row of two layers that has none filled in both is no sign of a copy."""
    layers = [LayerSpec(layer=n, num_experts=384, top_k=8, empty_slots=True) for n in range(3)]
    score = np.random.default_rng(0).random((40, 384))
    rows_TK = np.argsort(score, axis=1)[:, :8]
    rows_TK[:, 5:] = -1
    for tokens, status in ((1, "skip"), (40, "fail")):
        ids_TK = rows_TK[:tokens].copy()
        ids_TK[0] = -1
        with TraceWriter(tmp_path / "trace", layers=layers, force=True) as writer:
            writer.add([ids_TK, ids_TK, rows_TK[::-1][:tokens]])
        found = {check.check: check for check in check_trace(tmp_path / "trace")}
        assert found["Q20"].status == status


def test_one_layer_is_no_copy(checks: Any) -> None:
    found = checks(route(text(300, 7), (64, 6, 1), 7), num_experts=64)
    assert (found["Q20"].status, found["Q20"].reason) == ("skip", "one layer")


def test_ids_within_a_device_are_found(checks: Any) -> None:
    """Half of 16 experts in every layer, by top-1 routers whose ids nothing else makes odd."""
    token_id_T = text(2000, 8)
    ids_TLK = route(token_id_T, TOP_1, 8)
    assert checks(ids_TLK, num_experts=16)["Q21"].status == "pass"
    found = checks(ids_TLK % 8, num_experts=16)
    assert failing(found) == {"Q21"}
    assert found["Q21"].value == "ids 0 to 7 of 0 to 15 in layer 0, the least likely of 24"
    # 1 of C(16, 8) in a layer: of one that is no reason to fail, nor to pass.
    assert checks(ids_TLK[:, :1] % 8, num_experts=16)["Q21"].status == "skip"
    assert checks(ids_TLK[:, :1], num_experts=16)["Q21"].status == "pass"


def test_chance_of_first_experts() -> None:
    """All of the used experts among the first: hypergeometric in each layer, joined by Fisher."""
    rng = np.random.default_rng(9)
    verdicts = set()
    for _ in range(40):
        layers, logs = [], 0.0
        for number in range(3):
            counts_N = rng.integers(0, 2, 20) * (np.arange(20) < rng.integers(9, 21))
            counts_N[0] = 1
            used, top = int((counts_N > 0).sum()), int(np.flatnonzero(counts_N)[-1]) + 1
            logs += hypergeom.logpmf(used, 20, top, used)
            spec = LayerSpec(layer=number, num_experts=20, top_k=1)
            layers.append(LayerCounts(spec, counts_N, int(counts_N.sum())))
        is_fair = chi2.sf(-2 * logs, 6) >= 1 / 3_000_000
        is_low = all(not layer.counts_N[10:].any() for layer in layers)
        status = "fail" if not is_fair else "skip" if is_low else "pass"
        assert experts_in_use(layers).status == status
        verdicts.add(is_fair)
    assert verdicts == {True, False}


def filled(path: Path, **options: Any) -> RowSample:
    source = Source(open_trace(path))
    sample = RowSample(source, **options)
    scan(source, [sample])
    return sample


def test_sample_has_rows_of_all_parts(tmp_path: Path) -> None:
    """Every row that was taken, beside what was written, in traces of several parts."""
    rng = np.random.default_rng(10)
    layers = [LayerSpec(layer=n, num_experts=300, top_k=2) for n in (3, 4)]
    ids_LTK = rng.integers(0, 300, (2, 1500, 2))
    token_id_T = rng.integers(0, 99, 1500)
    with TraceWriter(tmp_path / "trace", layers=layers, segment_tokens=128) as writer:
        for start in range(0, 1500, 100):
            here = slice(start, start + 100)
            writer.add(list(ids_LTK[:, here]), token_ids=token_id_T[here], choice_end=60)
    for most, rows in ((4096, 1500), (256, 256)):
        sample = filled(tmp_path / "trace", most=most)
        assert len(set(sample.row_E.tolist())) == rows
        assert (sample.row_E[0], sample.row_E[-1]) == (0, 1499)
        for place, row in enumerate(sample.row_E.tolist()):
            position = row % 100
            tokens = [token_id_T[row - 1] if position else -1, token_id_T[row]]
            tokens.append(token_id_T[row + 1] if position < 99 else -1)
            assert sample.tokens_3E[:, place].tolist() == tokens
            assert sample.is_generated_E[place] == (position >= 60)
            is_next = place > 0 and sample.row_E[place - 1] == row - 1
            assert sample.follows_E[place] == (is_next and position > 0)
        np.testing.assert_array_equal(sample.ids_EK, ids_LTK[0, sample.row_E])
        sets = [frozenset(row) for ids_TK in ids_LTK for row in ids_TK[sample.row_E].tolist()]
        pairs = set(zip(sets, sample.prints_LE.ravel().tolist(), strict=True))
        assert len({one for one, _ in pairs}) == len({other for _, other in pairs}) == len(pairs)


@pytest.mark.parametrize("shape", [(8, 2, 8), (16, 1, 24), (128, 1, 4), (64, 8, 3), (32, 4, 4)])
def test_sound_traces_fail_nothing(checks: Any, shape: Shape) -> None:
    for seed in range(12):
        tokens = (1, 7, 300)[seed % 3]
        own = (0, 1, 9)[seed // 4]
        token_id_T = text(tokens, seed)
        ids_TLK = route(token_id_T, shape, seed, own=own)
        assert failing(checks(ids_TLK, token_id_T, num_experts=shape[0])) == set(), seed
