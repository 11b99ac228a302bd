"""One wrong call refuses itself: what was written before and after it is a whole trace."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from moe_probe.errors import TraceError
from moe_probe.trace import LayerSpec, Sequence, TraceWriter, open_trace

LAYERS = [
    LayerSpec(layer=0, num_experts=8, top_k=2, scalars=True),
    LayerSpec(layer=1, num_experts=300, top_k=1, empty_slots=True),
]
IDS = [np.array([[0, 1]] * 6), np.array([[299]] * 6)]
WEIGHTS = [np.full((6, 2), 0.5), np.ones((6, 1))]
SCALARS = [np.ones((6, 3))]

BAD_FACTS: list[tuple[dict[str, Any], str]] = [
    ({"doc_id": -7}, r"has doc_id -7; give an integer from 0 to \d+ or -1 for none$"),
    ({"doc_id": 1 << 62}, "has doc_id 4611686018427387904; give an integer from 0 to 46116"),
    ({"doc_id": "x"}, "has doc_id 'x'; give an integer"),
    ({"doc_id": 1.0}, r"has doc_id 1\.0; give an integer"),
    ({"doc_id": True}, "has doc_id True; give an integer"),
    ({"doc_id": None}, "has doc_id None; give an integer"),
    ({"multiplicity": -1}, r"has multiplicity -1; give an integer from 0 to 2147483647$"),
    ({"multiplicity": 1 << 31}, "has multiplicity 2147483648; give"),
    ({"new_from": -5}, "has new_from -5; give an integer from 0 to 16777215 or -1 for none"),
    ({"new_from": 1 << 24}, "has new_from 16777216; give"),
    ({"subject": None}, "has subject None; give a text"),
    ({"subject": 5}, "has subject 5; give a text"),
    ({"task": b"t"}, "has task b't'; give a text"),
    ({"prompt_hash": np.array(["a"])}, r"has prompt_hash array\(.*; give a text"),
    ({"subject": "s" * (9 << 20)}, "bytes is more than a segment can hold; cut it to 8 MiB"),
    ({"sampled": 1}, "has sampled 1; give True or False"),
    ({"rows_kept": "no"}, "has rows_kept 'no'; give True or False"),
    ({"choices": [1, -1]}, r"has choices \[1, -1\]; give a list of integers from 0 to 2147483647"),
    ({"choices": [1 << 31]}, "give a list of integers"),
    ({"choices": 3}, "has choices 3; give a list"),
    ({"choices": np.arange(3)}, "give a list of integers"),
    ({"rank": -1}, "has rank -1; give"),
    ({"truncated_tokens": 0.5}, r"has truncated_tokens 0\.5; give"),
    ({"prefix_end": 99}, "has prefix_end 99, question_end 6, .* and 6 tokens; give ends in this"),
    ({"prefix_end": 5, "question_end": 3}, "has prefix_end 5, question_end 3, cue_end 6"),
    ({"choice_end": 7}, "choice_end 7 and 6 tokens"),
    ({"cue_end": None}, "has cue_end None; give an integer"),
    ({"prefix_end": -1}, "has prefix_end -1; give an integer from 0 to 16777215$"),
    ({"prefix_id": 0, "prefix_tokens": 2}, "has 6 tokens, 2 of them shared, but 6 rows were given"),
    ({"prefix_id": 999}, "has prefix_id 999; give the id of an earlier sequence"),
    ({"prefix_tokens": 7, "cached_tokens": 7}, "so it cannot share the first 7; give"),
    ({"subjct": "a"}, "has a field 'subjct'; the fields are sequence_id, num_tokens, task"),
]
FLOATS = np.full((6, 2), 1.5)
BAD_ARRAYS: list[tuple[dict[str, Any], str]] = [
    ({"topk_ids": IDS[:1]}, "topk_ids has 1 arrays; give one for each of 2 layers"),
    ({"topk_ids": None}, "topk_ids holds no arrays .*; give a list of them"),
    ({"topk_ids": [[[0, 1], [2]], IDS[1]]}, "topk_ids holds no arrays .*; give a list of them"),
    ({"topk_ids": [IDS[0][:5], IDS[1]]}, r"layer 1 has shape \(6, 1\); give \(5, 1\)"),
    ({"topk_ids": [IDS[0][:, 0], IDS[1]]}, r"layer 0 has shape \(6,\); give \(6, 2\)"),
    ({"topk_ids": [FLOATS, IDS[1]]}, "layer 0: ids of type float64; give integers"),
    ({"topk_ids": [IDS[0] > 0, IDS[1]]}, "layer 0: ids of type bool; give integers"),
    ({"topk_ids": [IDS[0] + 7, IDS[1]]}, "layer 0: ids from 7 to 8, but there are 8 experts"),
    ({"topk_ids": [IDS[0] - 1, IDS[1]]}, "layer 0: ids from -1 to 0"),
    ({"topk_ids": [IDS[0].astype(object), IDS[1]]}, "ids of type object"),
    ({"topk_weights": None}, "capture 'weights' needs topk_weights"),
    # As many numbers as all layers together need, but not layer by layer.
    ({"topk_weights": WEIGHTS[::-1]}, r"topk_weights of layer 0 has shape \(6, 1\); give \(6, 2\)"),
    ({"topk_weights": [FLOATS.astype(str), WEIGHTS[1]]}, "layer 0 is of type <U.*; give float"),
    ({"router_scalars": None}, "router_scalars has 0 arrays; give one for each of 1 layers"),
    ({"router_scalars": [np.ones((6, 2))]}, r"layer 0 has shape \(6, 2\); give \(6, 3\)"),
    ({"token_ids": np.zeros(5, int)}, r"\(5,\) token ids for 6 rows"),
    ({"token_ids": np.full(6, 0.5)}, "token ids from 0.5 to 0.5 of type float64; expected integ"),
    ({"token_ids": np.full(6, 1 << 31)}, "token ids from 2147483648 to 2147483648"),
    ({"token_ids": np.full(6, -2)}, "token ids from -2 to -2"),
    ({"token_ids": ["a"] * 6}, "token ids of type <U1"),
    ({"forward_passes": 0.5}, r"forward passes from 0\.5 to 0\.5 of type float64"),
    ({"forward_passes": ["a"] * 6}, "forward passes of type <U1"),
]


def new(path: Path, **options: Any) -> TraceWriter:
    return TraceWriter(path, layers=LAYERS, capture="weights", segment_tokens=64, **options)


def add(writer: TraceWriter, **changes: Any) -> int:
    arrays = {"topk_ids": IDS, "topk_weights": WEIGHTS, "router_scalars": SCALARS}
    return writer.add(**{**arrays, **changes})


def content(path: Path) -> dict[str, list[Any]]:
    trace = open_trace(path)
    assert trace.run["status"] == "complete"
    columns: dict[str, list[Any]] = trace.sequences.drop_columns("sequence_id").to_pydict()
    assert pc.sum(trace.counts["count"]).as_py() == 6 * 3 * trace.sequences.num_rows
    return columns


@pytest.mark.parametrize("bad", [BAD_FACTS, BAD_ARRAYS])
def test_a_wrong_sequence_is_refused_and_all_others_are_kept(
    tmp_path: Path, bad: list[tuple[dict[str, Any], str]]
) -> None:
    with new(tmp_path / "plain") as plain, new(tmp_path / "tried") as tried:
        for number, (changes, message) in enumerate(bad):
            for writer in (plain, tried):
                add(writer, doc_id=number, subject="ab"[number % 2])
            with pytest.raises(ValueError, match=message):
                add(tried, **changes)
    assert content(tmp_path / "tried") == content(tmp_path / "plain")
    assert content(tmp_path / "tried")["doc_id"] == list(range(len(bad)))


def test_the_extremes_of_every_number_are_accepted(tmp_path: Path) -> None:
    facts = {
        "doc_id": (1 << 62) - 1,
        "multiplicity": np.int64(1),
        "new_from": -1,
        "choices": (0, (1 << 31) - 1),
        "truncated_tokens": (1 << 62) - 1,
        "subject": "a\0b\u2028\n\r" + "s" * 100_000,
        "prefix_end": 6,
        "sampled": np.bool_(True),
        "token_ids": np.full(6, (1 << 31) - 1, np.int64),
    }
    with new(tmp_path / "t") as writer:
        add(writer, **facts)
        add(writer, task="\ud800", new_from=(1 << 24) - 1, doc_id=-1)
        empty = [np.full((6, 1), -1), np.full((6, 1), np.nan)]
        add(writer, topk_ids=[IDS[0], empty[0]], topk_weights=[WEIGHTS[0], empty[1]])
    rows = open_trace(tmp_path / "t").sequences.to_pylist()
    kept = {name: facts[name] for name in facts if name not in ("choices", "token_ids")}
    assert rows[0].items() >= kept.items()
    assert rows[0]["choices"] == [0, (1 << 31) - 1]
    assert rows[1]["task"] == "?"
    (block,) = open_trace(tmp_path / "t").scan()
    assert set(block.token_id_T[:6].tolist()) == {(1 << 31) - 1}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda w: w.answer(0, -1),
            "an answer has choice -1; give an integer from 0 to 2147483647",
        ),
        (lambda w: w.answer("0", 0), "has sequence_id '0'; give an integer"),
        (lambda w: w.answer(0, 0, loglik="x"), "has loglik 'x'; give a number or None"),
        (lambda w: w.answer(0, 0, is_greedy=1), "has is_greedy 1; give True or False or None"),
        (lambda w: w.answer(0, 0, response=b"a"), "has response b'a'; give a text or None"),
        (lambda w: w.close(correct={("t", 0): "yes"}), r"for \('t', 0\) 'yes'; give True or False"),
        (lambda w: w.close(correct={"t": True}), r"has the key 't'; give \(task, doc_id\)"),
        (lambda w: w.close(correct={("t", "0"): True}), r"has the key \('t', '0'\); give"),
    ],
)
def test_a_wrong_answer_is_refused_and_the_trace_goes_on(
    tmp_path: Path, call: Callable[[TraceWriter], None], message: str
) -> None:
    with new(tmp_path / "t") as writer:
        add(writer, task="t", doc_id=0)
        with pytest.raises(ValueError, match=message):
            call(writer)
        writer.answer(0, 0, loglik=np.float32(-1), is_greedy=np.bool_(True))  # type: ignore[arg-type]
        writer.close(correct={("t", np.int64(0)): np.bool_(True)})  # type: ignore[dict-item]
    rows = content(tmp_path / "t")
    assert (rows["choice_logliks"], rows["correct"]) == ([[-1.0]], [True])


@pytest.mark.parametrize("rank", [-1, 1 << 22, "0"])
def test_an_impossible_rank_replaces_no_trace(tmp_path: Path, rank: Any) -> None:
    with new(tmp_path / "t") as writer:
        add(writer)
    with pytest.raises(
        ValueError, match=r"the trace has rank .*; give an integer from 0 to 4194303"
    ):
        new(tmp_path / "t", rank=rank, force=True)
    assert len(content(tmp_path / "t")["doc_id"]) == 1


def test_nobody_shares_more_tokens_than_the_owner_has(tmp_path: Path) -> None:
    def sequence(number: int, tokens: int, **facts: Any) -> Sequence:
        return Sequence(sequence_id=number, num_tokens=tokens, prefix_tokens=tokens, **facts)

    def sharing(owner: int, tokens: int, runs: int = 1) -> Sequence:
        facts = {"prefix_id": owner, "multiplicity": runs}
        return sequence(writer.next_sequence_id(), tokens, **facts)

    with TraceWriter(tmp_path / "t", layers=LAYERS) as writer:
        writer.add(IDS)
        later = writer.next_sequence_id()
        writer.write(sequence(writer.next_sequence_id(), 8, cached_tokens=8))
        for owner, tokens, most in ((0, 7, 6), (2, 8, 0)):
            message = f"shares its first {tokens} tokens with {owner}, which can share {most}: all"
            with pytest.raises(ValueError, match=message):
                writer.write(sharing(owner, tokens))
        whole = sharing(0, 6)
        writer.write(whole)
        writer.write(sharing(whole.sequence_id, 5, runs=3))
        writer.write(sequence(later, 4, prefix_id=0))
    # Twice all six; three times the first five, by way of another one; once the first four.
    assert open_trace(tmp_path / "t").sharing.extra_runs()[0].tolist() == [5, 5, 5, 5, 4, 1]


def test_without_rows_a_sequence_that_ran_is_written_whole(tmp_path: Path) -> None:
    def sequence(runs: int) -> Sequence:
        number = writer.next_sequence_id()
        shared: dict[str, Any] = {"prefix_id": 0, "prefix_tokens": 6}
        return Sequence(sequence_id=number, num_tokens=6, multiplicity=runs, **shared)

    with TraceWriter(tmp_path / "t", layers=LAYERS, capture="counts") as writer:
        writer.add(IDS)
        with pytest.raises(ValueError, match="shares its first 6 tokens with 0, but capture 'cou"):
            writer.write(sequence(runs=1))
        # Answered from another one's run: nothing is counted for it.
        writer.write(sequence(runs=0))
    assert open_trace(tmp_path / "t").counts["count"].to_pylist() == [6, 6, 6]


def test_leading_tokens_belong_to_a_sequence_that_has_them(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "t", layers=LAYERS) as writer:
        writer.add(IDS)
        for owner in (1, 2):
            number = writer.next_sequence_id()
            sequence = Sequence(
                sequence_id=number, num_tokens=6, prefix_id=owner, prefix_tokens=6, multiplicity=0
            )
            with pytest.raises(ValueError, match=f"sequence {number} has prefix_id {owner}; give"):
                writer.write(sequence)
        sequence.prefix_id, sequence.multiplicity = 0, 1
        writer.write(sequence)
    part = next((tmp_path / "t" / "sequences").iterdir())
    table = pq.read_table(part)
    for name, values in (("num_tokens", [6, 9]), ("prefix_tokens", [0, 9])):
        column = pa.array(values, table.schema.field(name).type)
        table = table.set_column(table.schema.get_field_index(name), name, column)
    pq.write_table(table, part)
    with pytest.raises(TraceError, match="refers to 0 for its first 9 tokens, which has 6"):
        open_trace(tmp_path / "t").sharing.extra_runs()


@pytest.mark.parametrize("use", [new, open_trace])
def test_a_path_that_parquet_cannot_have_is_refused_at_first(tmp_path: Path, use: Any) -> None:
    with pytest.raises(TraceError, match=r"not UTF-8, .*\. Rename the folder, or name another\.$"):
        use(tmp_path / "t\udcff")
    assert list(tmp_path.iterdir()) == []
