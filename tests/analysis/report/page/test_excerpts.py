"""Excerpts of documents: which are chosen, that their rows are the model's, and tokens as text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models

from moe_probe.analysis.report.contents import gather
from moe_probe.analysis.report.page.data_documents import documents, token_texts
from moe_probe.analysis.report.page.excerpts import Excerpt, choose, read
from moe_probe.analysis.report.page.payload import Payload
from moe_probe.analysis.settings import Settings
from moe_probe.errors import UsageError
from moe_probe.trace import LayerSpec, TraceWriter, open_trace
from tests.analysis.conftest import LAYERS, make_run, route

TINY = Path(__file__).parents[4] / "moe_probe/bundled/tiny_moe"
NAMES = ("prefix", "question", "cue", "choice", "generated")


@pytest.mark.parametrize("seed", range(4))
def test_rows_are_what_the_model_ran(tmp_path: Path, seed: int) -> None:
    """Also of tokens that another sequence, or another part, stores."""
    run = make_run(tmp_path / "trace", seed)
    chosen = choose(run.trace, documents=100, tokens=6)
    excerpts, routing = read(run.trace, chosen)
    assert len(excerpts) == len(chosen) > 5
    assert any(excerpt.sequence["prefix_tokens"] > excerpt.start for excerpt in excerpts)
    at = 0
    for excerpt in excerpts:
        prompt = run.prompts[excerpt.sequence["sequence_id"]]
        assert excerpt.start == prompt["ends"][0]
        assert 0 < len(excerpt) == min(len(prompt["tokens"]) - excerpt.start, 6)
        ends = [*prompt["ends"], len(prompt["tokens"])]
        for position, segment in zip(
            range(excerpt.start, excerpt.stop), excerpt.segment_T, strict=True
        ):
            assert NAMES[segment] == next(
                name for name, end in zip(NAMES, ends, strict=True) if position < end
            )
            for spec in LAYERS:
                experts = route(spec, tuple(prompt["tokens"][: position + 1]))
                assert routing.ids[spec.layer][at].tolist() == experts.tolist()
            at += 1
    assert routing.token_id_T.tolist() == [-1] * at


def test_subjects_and_areas_take_turns(tmp_path: Path) -> None:
    spec = LayerSpec(layer=0, num_experts=4, top_k=1)
    areas = {"a": "one", "b": "one", "c": "one", "d": "two", "e": ""}
    with TraceWriter(tmp_path / "trace", layers=[spec]) as writer:
        for subject, area in areas.items():
            for document in range(3):
                facts: dict[str, Any] = {
                    "task": "t",
                    "subject": subject,
                    "area": area,
                    "doc_id": document,
                }
                ids_TK = np.zeros((5, 1), np.int64)
                for _ in range(2):
                    writer.add([ids_TK], token_ids=document + np.arange(5), choice_end=5, **facts)
    trace = open_trace(tmp_path / "trace")
    found = choose(trace, documents=7, tokens=3)
    order = "".join(excerpt.sequence["subject"] for excerpt in found)
    assert order == "eadbce" + "a"
    assert [len(excerpt) for excerpt in found] == [3] * 7
    _, routing = read(trace, found)
    assert routing.token_id_T.tolist() == [*[0, 1, 2] * 5, *[1, 2, 3] * 2]
    everything = choose(trace, documents=100, tokens=3)
    pairs = [(one.sequence["subject"], one.sequence["doc_id"]) for one in everything]
    assert len(set(pairs)) == len(pairs) == 15


def test_tokens_without_rows_leave_their_document_out(tmp_path: Path) -> None:
    run = make_run(tmp_path / "trace", 1)
    cached = [row for row in run.trace.sequences.to_pylist() if row["cached_tokens"] > 1]
    assert cached
    whole = [Excerpt(row, 0, row["num_tokens"]) for row in cached]
    chosen = [whole[0], *choose(run.trace, documents=2, tokens=4)]
    excerpts, routing = read(run.trace, chosen)
    assert excerpts == chosen[1:]
    assert len(routing.token_id_T) == sum(map(len, chosen[1:]))
    assert not {
        one.sequence["sequence_id"] for one in choose(run.trace, documents=99, tokens=4)
    } & {row["sequence_id"] for row in cached if row["cached_tokens"] > row["prefix_end"]}


def test_empty_slots_are_no_expert(tmp_path: Path) -> None:
    spec = LayerSpec(layer=0, num_experts=4, top_k=2, empty_slots=True)
    ids_TK = np.array([[1, 3], [2, spec.none_id]])
    with TraceWriter(tmp_path / "trace", layers=[spec]) as writer:
        writer.add([ids_TK], token_ids=np.arange(2), choice_end=2, doc_id=0)
    trace = open_trace(tmp_path / "trace")
    _, routing = read(trace, choose(trace, documents=1, tokens=9))
    assert routing.ids[0].tolist() == [[1, 3], [2, 4]]


def test_nothing_without_token_ids_or_rows(tmp_path: Path) -> None:
    spec = LayerSpec(layer=0, num_experts=4, top_k=1)
    for capture in ("ids", "counts"):
        with TraceWriter(tmp_path / capture, layers=[spec], capture=capture) as writer:
            writer.add([np.zeros((5, 1), np.int64)], choice_end=5, doc_id=0)
        payload = Payload()
        documents(gather(open_trace(tmp_path / capture), Settings()), payload)
        assert payload.meta["documents"] == []


def test_texts_make_up_what_was_encoded() -> None:
    text = "What is 2 + 2?\nA. four, B. quatre"
    ids = Tokenizer.from_file(str(TINY / "tokenizer.json")).encode(text).ids
    for path in (TINY, TINY / "tokenizer.json"):
        found = token_texts(ids, path)
        assert "".join(map(str, found)) == f"<bos>{text}"
    assert token_texts([10**7], TINY) == [None]


def test_spaces_that_a_decoder_drops_are_kept(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({"▁big": 0, "ger": 1, "<s>": 2}, unk_token="<s>"))
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert token_texts([0, 1, 2, 9], tmp_path) == [" big", "ger", "<s>", None]


def test_what_is_no_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no tokenizer at"):
        token_texts([1], tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UsageError, match="is not a tokenizer"):
        token_texts([1], tmp_path)
