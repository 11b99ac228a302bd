"""What token ids say of experts, from tables made token by token.

Shape suffixes: T tokens, K slots.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from moe_probe.analysis import token_lists, token_predictability, vocabulary_specialization
from moe_probe.analysis.accumulators.vocabulary import TokenCounts
from moe_probe.analysis.metrics import vocabulary
from moe_probe.analysis.metrics.token_counts import VocabularyCounts
from moe_probe.analysis.reading.rules import Rule
from moe_probe.analysis.reading.source import Source
from moe_probe.analysis.scan import scan
from moe_probe.analysis.statistics.clusters import halves
from moe_probe.errors import TraceError
from moe_probe.trace import LayerSpec, Trace, TraceWriter, open_trace
from moe_probe.trace.schema import Sequence
from tests.analysis.conftest import Run
from tests.analysis.metrics.routing import vocabulary_counts
from tests.analysis.streams import LAYERS, Token, make_stream

FUNCTIONS: list[Callable[..., pd.DataFrame]] = [
    token_lists,
    token_predictability,
    vocabulary_specialization,
]


def counted(tokens: list[Token], spec: LayerSpec) -> VocabularyCounts:
    """Count a list of tokens of a layer, slots padded with an id that the layer lacks."""
    padded = [(t.experts[spec.layer] + [999] * spec.top_k)[: spec.top_k] for t in tokens]
    ids_TK = np.array(padded, np.int64).reshape(len(tokens), spec.top_k)
    return vocabulary_counts(np.array([t.token_id for t in tokens]), ids_TK, spec.num_experts)


def split(trace: Trace, tokens: list[Token]) -> list[list[Token]]:
    """Deal documents into the halves that their keys say; clusters are in canonical order."""
    names = sorted({(t.subject, t.document) for t in tokens})
    keys = Source(trace).index.clusters.keys
    assert len(keys) == len(names)
    half = dict(zip(names, halves(keys).tolist(), strict=True))
    return [[t for t in tokens if half[t.subject, t.document] == number] for number in (0, 1)]


@pytest.mark.parametrize(("seed", "documents", "prefix"), [(0, 14, 3), (1, 30, 2), (2, 1, 0)])
def test_against_tokens_one_by_one(tmp_path: Path, seed: int, documents: int, prefix: int) -> None:
    trace, tokens = make_stream(tmp_path / "trace", seed, documents=documents, prefix=prefix)
    first, second = split(trace, tokens)
    shares = vocabulary_specialization(trace, least=5, threads=2).to_dict("records")
    recalls = token_predictability(trace, least=2, threads=1).to_dict("records")
    lists = token_lists(trace, most=3, least=4)
    for spec, share_row, recall_row in zip(LAYERS, shares, recalls, strict=True):
        assert share_row["layer"] == recall_row["layer"] == spec.layer
        share = vocabulary.top_share(counted(tokens, spec), 5)
        names = ("token_ids", "tokens", "specialization", "specialization_null", "weighted")
        expected = (share.token_ids, share.tokens, share.mean, share.mean_null, share.weighted)
        found = [share_row[name] for name in names]
        assert found == pytest.approx(list(expected), nan_ok=True)
        hits = known = usual = selected = 0.0
        for fitted, evaluated in ((first, second), (second, first)):
            facts = (counted(fitted, spec), counted(evaluated, spec), spec.top_k, 2)
            judged = vocabulary.token_recall(*facts)
            number = sum(len(t.experts[spec.layer]) for t in evaluated)
            selected += number
            hits, known = hits + judged.recall * number, known + judged.known * number
            usual += judged.null * number
        found = [recall_row[name] for name in ("recall", "recall_null", "known")]
        wanted = [value / selected for value in (hits, usual, known)]
        assert found == pytest.approx(wanted, nan_ok=True)
        listed = lists[lists["layer"] == spec.layer]
        by_loop = vocabulary.token_lists(counted(tokens, spec), 3, 4)
        columns = list(by_loop.columns)
        assert listed[columns].to_numpy() == pytest.approx(by_loop.to_numpy())
        p_N = counted(tokens, spec).counts_N / len(tokens)
        assert listed["share_null"].tolist() == pytest.approx(p_N[listed["expert"]].tolist())
    if documents == 1:
        assert pd.isna([row["recall"] for row in recalls]).all()
    else:
        assert 0 < recalls[0]["recall"] <= 1


def write(path: Path, documents: list[tuple[list[int], int]], experts: int) -> Trace:
    """Documents of token ids, run several times; a token selects the expert of its id."""
    with TraceWriter(path, layers=[LayerSpec(layer=0, num_experts=experts, top_k=1)]) as writer:
        for number, (token_ids, times) in enumerate(documents):
            token_id_T = np.array(token_ids, np.int32)
            rows = writer.layout.pack([token_id_T[:, None] % experts])
            facts = {"num_tokens": len(token_ids), "multiplicity": times, "doc_id": number}
            sequence = Sequence(sequence_id=writer.next_sequence_id(), **facts)  # type: ignore[arg-type]
            writer.write(sequence, rows, token_id_T=token_id_T)
    return open_trace(path)


def test_the_token_id_decides(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    trace = write(tmp_path / "t", [(rng.integers(0, 40, 60).tolist(), 1) for _ in range(30)], 5)
    row = token_predictability(trace).iloc[0]
    assert row["recall"] == row["known"] == 1
    assert 0.15 < row["recall_null"] < 0.3
    share = vocabulary_specialization(trace).iloc[0]
    assert (share["specialization"], share["tokens"]) == (1, 1800)
    assert 0.2 < share["specialization_null"] < 0.6
    lists = token_lists(trace, most=2)
    assert (lists["token_id"] % 5 == lists["expert"]).all()
    assert (lists["share"] == 1).all()
    assert len(lists) == 10


def test_rows_count_as_often_as_the_rule_says(tmp_path: Path) -> None:
    trace = write(tmp_path / "t", [([7, 7, 3], 3), ([7, 1], 1)], 5)
    raw = token_lists(trace, rule="raw", least=1)
    assert dict(zip(raw["token_id"], raw["tokens"], strict=True)) == {7: 7, 3: 3, 1: 1}
    unique = token_lists(trace, rule="unique", least=1)
    assert dict(zip(unique["token_id"], unique["tokens"], strict=True)) == {7: 3, 3: 1, 1: 1}


def test_halves_are_even_and_depend_on_keys_alone() -> None:
    keys = [f"t\x1fs\x1f\x1f{number}" for number in range(2000)]
    half_C = halves(keys)
    assert set(half_C.tolist()) == {0, 1}
    assert 900 < half_C.sum() < 1100
    assert halves(keys[::-1]).tolist() == half_C[::-1].tolist()


def test_shards_of_other_token_ids(tmp_path: Path) -> None:
    one = write(tmp_path / "one", [([1, 2, 2], 1)], 3)
    other = write(tmp_path / "other", [([2, 9], 1), ([9], 1)], 3)

    def filled(trace: Trace, ids: list[int]) -> TokenCounts:
        source = Source(trace)
        facts = (source.layers, Rule.UNIQUE, source.index)
        counts = TokenCounts(*facts, token_ids_X=np.array(ids), most=3)
        scan(source, [counts])
        return counts

    total = filled(one, [1, 2])
    total.merge(filled(other, [2, 9]))
    first, second = total.halves(0)
    whole = first.merge(second)
    assert whole.token_ids_X.tolist() == [1, 2, 9]
    assert whole.tokens_X.tolist() == [1, 3, 2]
    assert whole.dense(np.array([1, 2, 9])).tolist() == [[0, 1, 0], [0, 0, 3], [2, 0, 0]]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_what_cannot_be_told(
    function: Callable[..., pd.DataFrame], run: Run, tmp_path: Path
) -> None:
    with pytest.raises(TraceError, match="does not say which token each row is"):
        function(run.trace)
    with TraceWriter(tmp_path / "empty", layers=[LayerSpec(layer=0, num_experts=4, top_k=1)]):
        pass
    assert len(function(tmp_path / "empty")) == (function is not token_lists)
    with pytest.raises(ValueError, match="least=0: a whole number, at least one"):
        function(tmp_path / "empty", least=0)
