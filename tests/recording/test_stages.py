"""What pipeline stages recorded, joined, is what one process that saw all layers records."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import moe_probe
from moe_probe.errors import TraceError
from moe_probe.recording.stages import join_stages, open_trace
from moe_probe.trace import Capture, Trace, TraceWriter
from moe_probe.trace import open_trace as open_joined
from moe_probe.trace.files import read_run, write_run
from tests.recording.asked import (
    Asked,
    moved,
    passes_asked,
    random_asked,
    record_at_once,
    record_stage,
)
from tests.trace.recordings import LAYERS, stored_passes, stored_rows, table_counts

TWO = (LAYERS[:1], LAYERS[1:])
CUTS = (TWO, (LAYERS[:2], LAYERS[2:3], LAYERS[3:]), (LAYERS[1::2], LAYERS[::2]))
_SUMS = ("expected_tokens", "stored_tokens", "shared_tokens", "unsampled_tokens", "layers")


def assert_same(joined: Trace, expected: Trace) -> None:
    """Compare everything that both hold, bit by bit."""
    assert joined.sequences.to_pylist() == expected.sequences.to_pylist()
    assert table_counts(joined) == table_counts(expected)
    assert joined.run["layers"] == expected.run["layers"]
    assert (joined.capture, joined.is_recording) == (expected.capture, False)
    if joined.capture is not Capture.COUNTS:
        assert joined.to_arrow().equals(expected.to_arrow())


def assert_at_rest(root: Path) -> None:
    kinds = {path.name for path in root.iterdir()}
    assert kinds <= {"run.json", "sequences", "routing", "counts", "answers"}
    assert not list(root.rglob("*.tmp"))


def nearly(asked: list[Asked], rng: np.random.Generator) -> list[Asked]:
    """Requests in nearly the same order."""
    places = np.arange(len(asked)) + rng.integers(0, 8, len(asked))
    return [asked[index] for index in np.argsort(places, kind="stable")]


@settings(deadline=None, max_examples=15)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(0, 40),
    st.sampled_from(CUTS),
    st.sampled_from(Capture),
    st.sampled_from([1, 3]),
)
def test_joined_is_as_recorded_at_once(
    seed: int, count: int, cut: Any, capture: Capture, sample_every: int
) -> None:
    rng = np.random.default_rng(seed)
    asked = random_asked(rng, count)
    with TemporaryDirectory() as folder:
        options: dict[str, Any] = {"capture": capture, "sample_every": sample_every}
        expected = record_at_once(Path(folder, "expected"), asked, **options)
        root = Path(folder, "t")
        for stage, layers in enumerate(cut):
            order = nearly(asked, rng) if stage else asked
            size = int(rng.integers(20, 200))
            # As if the first stages had no layers.
            record_stage(root, stage + 2, layers, order, segment_tokens=size, **options)
        trace = moe_probe.open_trace(root)
        assert_same(trace, open_joined(Path(folder, "expected")))
        assert_at_rest(root)
        books = trace.run["completeness"]
        assert {n: books[n] for n in _SUMS} == {n: getattr(expected.totals, n) for n in _SUMS}
        assert (trace.run["status"], books["lost_tokens"]) == ("complete", 0)
        # Opening it again changes nothing.
        assert moe_probe.open_trace(root).run == trace.run


def test_run_json_has_the_first_stage_and_what_differs(tmp_path: Path) -> None:
    asked = random_asked(np.random.default_rng(1), 5)
    for stage, layers in enumerate(TWO):
        record_stage(tmp_path, stage, layers, asked, facts={"seed": 7})
    run = open_trace(tmp_path).run
    assert (run["model"], run["device"], run["seed"]) == ("m", "device 0", 7)
    table = run["stages"]
    assert {name: stage["layers"] for name, stage in table.items()} == {"0": [1], "1": [2, 5, 7]}
    assert (table["1"]["device"], "device" in table["0"], "seed" in table["1"]) == (
        "device 1",
        False,
        False,
    )


def test_a_request_that_a_stage_lacks_is_lost(tmp_path: Path) -> None:
    asked = random_asked(np.random.default_rng(2), 20)
    missing = {0: {3, 4}, 1: {4, 9}}
    for stage, layers in enumerate(TWO):
        kept = [each for each in asked if each.number not in missing[stage]]
        record_stage(tmp_path / "t", stage, layers, kept)
    record_at_once(tmp_path / "e", [each for each in asked if each.number not in {3, 4, 9}])
    run = join_stages(tmp_path / "t")
    assert run is not None
    trace = open_joined(tmp_path / "t")
    assert_same(trace, open_joined(tmp_path / "e"))
    books = run["completeness"]
    # Nobody knows of the one that both lack: a real stage has it in its own books.
    lost = asked[3].num_run + asked[9].num_run
    assert (books["lost_tokens"], run["status"]) == (lost, "incomplete")
    assert books["shortfall"] >= lost


def test_what_every_stage_lost_is_lost_once(tmp_path: Path) -> None:
    asked = random_asked(np.random.default_rng(3), 8)
    for stage, layers in enumerate(TWO):
        kept = asked[2 - stage :]
        writer = record_stage(tmp_path, stage, layers, kept).writer
        run = read_run(writer.files)
        run["completeness"]["lost_tokens"] = sum(each.num_run for each in asked[: 2 - stage])
        write_run(writer.files, run)
    books = open_trace(tmp_path).run["completeness"]
    assert books["lost_tokens"] == asked[0].num_run + asked[1].num_run


def test_what_a_request_has_otherwise_in_some_stage_is_lost(tmp_path: Path) -> None:
    asked = [Asked(n, (1, 2, n), (), (0, 3, 3, 3)) for n in range(4)]
    other = [asked[0], Asked(1, (1, 2, 9), (), (0, 3, 3, 3)), *asked[2:]]
    record_stage(tmp_path, 0, TWO[0], asked)
    record_stage(tmp_path, 1, TWO[1], other)
    trace = open_trace(tmp_path)
    assert trace.sequences["request_id"].to_pylist() == ["cmpl-0", "cmpl-2", "cmpl-3"]
    assert (trace.run["completeness"]["lost_tokens"], trace.run["status"]) == (3, "incomplete")


def test_an_aborted_request_ends_where_the_last_stage_did(tmp_path: Path) -> None:
    asked = [Asked(n, (1, 2, n, 4), (5, 6), (0, 2, 3, 4), kind="served") for n in range(3)]
    shorter = Asked(2, (1, 2, 2), (), (0, 2, 3, 3), kind="served")
    record_stage(tmp_path / "t", 0, TWO[0], asked)
    record_stage(tmp_path / "t", 1, TWO[1], [*asked[:2], shorter])
    record_at_once(tmp_path / "e", [*asked[:2], shorter])
    trace = open_trace(tmp_path / "t")
    assert_same(trace, open_joined(tmp_path / "e"))
    books = trace.run["completeness"]
    assert (books["expected_tokens"], books["superseded_tokens"], books["lost_tokens"]) == (
        15,
        3,
        0,
    )


def test_ranks_of_a_stage_are_joined_too(tmp_path: Path) -> None:
    asked = random_asked(np.random.default_rng(5), 30)
    for stage, layers in enumerate(TWO):
        for rank in (0, 1):
            group: dict[str, Any] = {"rank": rank, "group": "g"}
            record_stage(tmp_path / "t", stage, layers, asked[rank::2], **group)
    # The second rank counts for itself; joined, its passes come after the first one's.
    first_pass = 1 + max(int(each.passes_T.max()) for each in asked[::2])
    after = [replace(each, first_pass=first_pass) for each in asked[1::2]]
    record_at_once(tmp_path / "e", [*asked[::2], *after])
    assert_same(open_trace(tmp_path / "t"), open_joined(tmp_path / "e"))


def test_a_later_recording_is_joined_to_the_earlier_one(tmp_path: Path) -> None:
    asked = random_asked(np.random.default_rng(6), 30)
    numbered: list[Asked] = []
    for part in (asked[:12], asked[12:]):
        for stage, layers in enumerate(TWO):
            record_stage(tmp_path / "t", stage, layers, part)
        numbered += moved(open_joined(tmp_path / "t"), part) if numbered else part
        trace = open_trace(tmp_path / "t")
    assert stored_passes(trace) == passes_asked(trace, numbered)
    record_at_once(tmp_path / "e", asked)
    expected = open_joined(tmp_path / "e")
    names = ["request_id", "num_tokens", "choice_logliks", "response"]
    assert trace.sequences.select(names).equals(expected.sequences.select(names))
    counts = table_counts(expected)
    assert {k: v[0] for k, v in table_counts(trace).items()} == {k: v[0] for k, v in counts.items()}
    assert len(trace.run["resumed"]) == 1


def test_a_resumed_evaluation_has_every_context_and_request_once(tmp_path: Path) -> None:
    asked = [each for each in random_asked(np.random.default_rng(7), 60) if not each.cached]
    asked = [each for each in asked if each.kind == "generate_until"]
    unique = {(each.prompt, each.doc_id): each for each in reversed(asked)}
    asked = list(reversed(unique.values()))
    half = len(asked) // 2
    # The last two of the first half are run again.
    for part in (asked[:half], asked[half - 2 :]):
        for stage, layers in enumerate(TWO):
            record_stage(tmp_path / "t", stage, layers, part, is_evaluation=True)
        trace = open_trace(tmp_path / "t")
    record_at_once(tmp_path / "e", asked)
    expected = open_joined(tmp_path / "e")
    assert len(asked) > 8
    assert table_counts(trace) == table_counts(expected)
    names = ["sequence_id", "num_tokens", "new_from", "prompt_hash", "response"]
    assert trace.sequences.select(names).equals(expected.sequences.select(names))


def test_a_forced_recording_replaces_the_trace_only_when_it_is_joined(tmp_path: Path) -> None:
    asked = random_asked(np.random.default_rng(8), 10)
    record_at_once(tmp_path / "t", asked[:4])
    for stage, layers in enumerate(TWO):
        record_stage(tmp_path / "t", stage, layers, asked[4:], replaces=True)
        assert open_joined(tmp_path / "t").sequences.num_rows == 4
    record_at_once(tmp_path / "e", asked[4:])
    assert_same(open_trace(tmp_path / "t"), open_joined(tmp_path / "e"))


def test_a_recording_under_way_is_left_alone(tmp_path: Path) -> None:
    asked = random_asked(np.random.default_rng(9), 6)
    record_stage(tmp_path, 0, TWO[0], asked)
    with (
        TraceWriter(tmp_path / "stages" / "1", layers=TWO[1]),
        pytest.raises(TraceError, match="is being recorded by pipeline stages"),
    ):
        open_trace(tmp_path)
    assert len(stored_rows(open_joined(tmp_path / "stages" / "0"))) > 0
    assert not (tmp_path / "run.json").exists()


@pytest.mark.parametrize("killed", [{0}, {1}, {0, 1}])
def test_what_killed_stages_left_is_joined(tmp_path: Path, killed: set[int]) -> None:
    asked = random_asked(np.random.default_rng(12), 25)
    for stage, layers in enumerate(TWO):
        # The last stage did not come as far as the first.
        kept = asked[: 25 - 3 * stage]
        record_stage(tmp_path / "t", stage, layers, kept, is_killed=stage in killed)
    record_at_once(tmp_path / "e", asked[:22])
    trace = open_trace(tmp_path / "t")
    assert_same(trace, open_joined(tmp_path / "e"))
    assert_at_rest(tmp_path / "t")
    # Books that nobody closed say nothing.
    assert (trace.run["status"], "completeness" in trace.run) == ("killed", False)
    assert trace.run["join"]["lost_tokens"] == sum(each.num_run for each in asked[22:])


@pytest.mark.parametrize(
    ("second", "options", "message"),
    [
        (LAYERS[:2], {}, "stages 0 and 1 in .* both have layer 1"),
        (LAYERS[1:], {"capture": Capture.WEIGHTS}, "different capture levels, ids, weights"),
        (LAYERS[1:3], {}, "have 3 of the model's 4 MoE layers"),
    ],
)
def test_stages_that_do_not_fit_are_refused(
    tmp_path: Path, second: Any, options: dict[str, Any], message: str
) -> None:
    asked = random_asked(np.random.default_rng(10), 3)
    facts = {"model_facts": {"num_moe_layers": 4}}
    record_stage(tmp_path, 0, TWO[0], asked, facts=facts)
    record_stage(tmp_path, 1, second, asked, facts=facts, **options)
    with pytest.raises(TraceError, match=message):
        open_trace(tmp_path)
    assert len(list((tmp_path / "stages").iterdir())) == 2


def test_a_trace_that_is_no_stage_is_refused(tmp_path: Path) -> None:
    record_at_once(tmp_path / "stages" / "0", random_asked(np.random.default_rng(11), 3))
    with pytest.raises(TraceError, match="is no pipeline stage's trace"):
        open_trace(tmp_path)
