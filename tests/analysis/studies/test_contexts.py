"""The text around tokens, from tokens one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe_probe.analysis import token_contexts, token_lists
from moe_probe.errors import TraceError
from moe_probe.trace import LayerSpec, TraceWriter
from tests.analysis.conftest import Run
from tests.analysis.streams import LAYERS, Token, make_stream


def expected_contexts(
    tokens: list[Token], pair: dict[Any, Any], contexts: int, around: int
) -> list[dict[str, Any]]:
    """The first selecting tokens of different documents, and the rows stored beside each."""
    found: list[dict[str, Any]] = []
    documents: set[Any] = set()
    for place, token in enumerate(tokens):
        document = token.subject, token.document
        is_hit = (
            token.token_id == pair["token_id"] and pair["expert"] in token.experts[pair["layer"]]
        )
        if not is_hit or document in documents or len(found) == contexts:
            continue
        documents.add(document)
        mine = [
            (other.position, other.token_id)
            for other in tokens[max(place - 40, 0) : place + 40]
            if other.sequence == token.sequence
        ]
        found.append(
            {
                "context": len(found) + 1,
                "sequence_id": token.sequence,
                "position": token.position,
                "before": [i for p, i in mine if token.position - around <= p < token.position],
                "after": [i for p, i in mine if token.position < p <= token.position + around],
            }
        )
    return found


@pytest.mark.parametrize(("seed", "documents", "prefix"), [(0, 30, 3), (1, 60, 0), (2, 1, 0)])
def test_against_tokens_one_by_one(tmp_path: Path, seed: int, documents: int, prefix: int) -> None:
    trace, tokens = make_stream(tmp_path / "trace", seed, documents=documents, prefix=prefix)
    facts: Any = {"most": 3, "least": 2}
    lists = token_lists(trace, **facts)
    found = token_contexts(trace, **facts, contexts=2, around=3, threads=1 + seed)
    known = [spec.layer for spec in LAYERS]
    assert set(found["layer"]) <= set(known)
    pairs = ["layer", "expert", "token_id"]
    in_order = found[pairs].drop_duplicates().to_numpy().tolist()
    assert in_order == lists[pairs].to_numpy().tolist()
    records: list[dict[Any, Any]] = found.to_dict("records")
    for row in records:
        row |= {name: [int(i) for i in row[name].split()] for name in ("before", "after")}
    wanted = [
        {**pair, **context}
        for pair in lists[pairs].to_dict("records")
        for context in expected_contexts(tokens, pair, 2, 3)
    ]
    assert records == wanted


def test_the_text_of_a_planted_token(tmp_path: Path) -> None:
    """Expert 1 is for token 7 alone; a document has it twice and is shown once."""
    with TraceWriter(tmp_path / "t", layers=[LayerSpec(layer=0, num_experts=2, top_k=1)]) as writer:
        for number in range(12):
            token_ids = np.array([number + 20, 7, number + 40, 7], np.int32)
            experts = (token_ids == 7).astype(np.int64)[:, None]
            writer.add([experts], doc_id=number, token_ids=token_ids)
    found = token_contexts(tmp_path / "t").query("expert == 1")
    assert found["token_id"].tolist() == [7, 7, 7]
    assert found["position"].tolist() == [1, 1, 1]
    assert found["before"].tolist() == ["20", "21", "22"]
    assert found["after"].tolist() == ["40 7", "41 7", "42 7"]


def test_what_cannot_be_told(run: Run, tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="does not say which token each row is"):
        token_contexts(run.trace)
    trace, _ = make_stream(tmp_path / "stream", 0)
    wrong: list[dict[str, Any]] = [{"contexts": 0}, {"around": 0}]
    for facts in wrong:
        with pytest.raises(ValueError, match="at least one"):
            token_contexts(trace, **facts)
