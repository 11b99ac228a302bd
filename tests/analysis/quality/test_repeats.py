"""Q11, Q13 and Q16: what ranks, sessions and a run without capture must have in common, and not.

Shape suffixes: T tokens, L layers, K slots.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_probe.analysis.accumulators.repeats import Repeats
from moe_probe.analysis.quality import Check, Status, check_trace
from moe_probe.analysis.scan import scan
from moe_probe.errors import TraceError
from moe_probe.trace import LayerSpec, Sequence, Trace, TraceWriter, open_trace

LAYERS = [LayerSpec(layer=layer, num_experts=300, top_k=3) for layer in (2, 5)]
Stored = tuple[str, int, int, np.ndarray]
"""A prompt's name, its tokens, its leading tokens without rows, and ids [T, L, K] of the others."""


def random_ids(rng: np.random.Generator, tokens: int) -> np.ndarray:
    """Return ids [T, L, K] of few experts, so that some rows are equal by chance."""
    return np.argsort(rng.random((tokens, len(LAYERS), 4)), axis=2)[:, :, :3] + 280


def write(path: Path, sequences: list[Stored], **facts: Any) -> Trace:
    with TraceWriter(path, layers=LAYERS, segment_tokens=64, force=True) as writer:
        for name, prompt, cached, ids_TLK in sequences:
            sequence = Sequence(
                sequence_id=writer.next_sequence_id(),
                num_tokens=cached + len(ids_TLK),
                choice_end=prompt,
                prompt_hash=name,
                prefix_tokens=cached,
                cached_tokens=cached,
                **facts,
            )
            writer.write(sequence, writer.layout.pack(list(ids_TLK.swapaxes(0, 1))))
    return open_trace(path)


def brute_force(sequences: list[Stored]) -> tuple[int, dict[int, int]]:
    """Compare token by token with the sequence that stored most of the prompt."""
    pairs, equal = 0, dict.fromkeys((spec.layer for spec in LAYERS), 0)
    for name in {stored[0] for stored in sequences if stored[0]}:
        group = [s for s in sequences if s[0] == name and s[2] < s[1]]
        group.sort(key=lambda stored: stored[2])
        for other in group[1:]:
            for position in range(max(group[0][2], other[2]), other[1]):
                pairs += 1
                rows = (stored[3][position - stored[2]] for stored in (group[0], other))
                first_LK, second_LK = rows
                for index, layer in enumerate(equal):
                    equal[layer] += set(first_LK[index]) == set(second_LK[index])
    return pairs, equal


def filled(trace: Trace, **options: Any) -> Repeats:
    repeats = Repeats(trace.sequences, trace.layers, **options)
    scan(trace, [repeats])
    return repeats


def random_sequences(seed: int) -> list[Stored]:
    """Return up to 12 sequences of 4 prompts, some cached in part, some with generated tokens."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 12, 5)
    sequences = []
    for _ in range(int(rng.integers(0, 13))):
        prompt = int(rng.integers(0, 5))
        length, cached = int(lengths[prompt]), 0
        if rng.random() < 0.4:
            cached = int(rng.integers(0, length + 1))
        rows = length - cached + int(rng.integers(0, 3))
        # The fifth prompt has no hash, as in a recording that keeps nothing of the text.
        sequences.append(("abcd"[prompt : prompt + 1], length, cached, random_ids(rng, rows)))
    return sequences


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000))
def test_agreement_is_that_of_a_loop(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    sequences = random_sequences(seed)
    trace = write(tmp_path_factory.mktemp("repeats") / "trace", sequences)
    assert filled(trace).agreement() == brute_force(sequences)


def test_order_of_slots_is_no_difference_and_shards_merge(tmp_path: Path) -> None:
    ids_TLK = random_ids(np.random.default_rng(0), 9)
    sequences: list[Stored] = [("a", 9, 0, ids_TLK), ("a", 9, 0, ids_TLK[:, :, ::-1])]
    trace = write(tmp_path / "trace", sequences)
    assert filled(trace).agreement() == (9, {2: 9, 5: 9})
    (block,) = trace.scan()
    shards = [Repeats(trace.sequences, trace.layers) for _ in range(2)]
    number_T = shards[0].locate(block.sequence_id_T, block.position_T)
    for shard, half in zip(shards, (slice(0, 7), slice(7, None)), strict=True):
        for layer in trace.layers:
            shard.add_arrays(layer, number_T[half], block.topk_ids(layer)[half])
    assert shards[0].agreement()[0] == 0
    shards[0].merge(shards[1])
    assert shards[0].agreement() == (9, {2: 9, 5: 9})
    other = write(tmp_path / "other", sequences * 2)
    with pytest.raises(ValueError, match="different traces"):
        shards[0].merge(Repeats(other.sequences, other.layers))


def test_a_bound_on_tokens_cuts_the_last_prompt(tmp_path: Path) -> None:
    ids_TLK = random_ids(np.random.default_rng(0), 10)
    trace = write(tmp_path / "trace", [(name, 10, 0, ids_TLK) for name in "aabbcc"])
    for bound, pairs in ((60, 30), (35, 15), (34, 14), (30, 10), (15, 5), (10, 0)):
        assert filled(trace, max_tokens=bound).agreement() == (pairs, {2: pairs, 5: pairs})


def found(trace: Trace, number: str) -> Check:
    return next(check for check in check_trace(trace) if check.check == number)


def test_q13_notes_a_model_that_does_not_repeat_itself(tmp_path: Path) -> None:
    ids_TLK = random_ids(np.random.default_rng(0), 20)
    same: list[Stored] = [("a", 20, 0, ids_TLK), ("a", 20, 0, ids_TLK)]
    check = found(write(tmp_path / "trace", same), "Q13")
    assert (check.status, check.value) == (Status.PASS, "100.00% of 20 rows in 1 prompts")
    other_TLK = ids_TLK.copy()
    other_TLK[5, 1] = [1, 2, 3]
    check = found(write(tmp_path / "trace", [same[0], ("a", 20, 0, other_TLK)]), "Q13")
    assert check.status is Status.NOTE
    assert check.value == "97.50% of 20 rows in 1 prompts, 95.00% in layer 5"
    for skipped in ([same[0], ("b", 20, 0, ids_TLK)], [("", 20, 0, ids_TLK)] * 2):
        assert found(write(tmp_path / "trace", skipped), "Q13").status is Status.SKIP


@pytest.fixture
def ranked(tmp_path: Path) -> Callable[..., Check]:
    """Write what each rank ran, by name of the prompt, and return Q11."""

    def run(*ranks: list[str], facts: dict[str, Any] | None = None, **common: Any) -> Check:
        path, rng = tmp_path / "trace", np.random.default_rng(0)
        for rank, names in enumerate(ranks):
            with TraceWriter(
                path, layers=LAYERS, run=facts, rank=rank, resume=rank > 0, force=rank == 0
            ) as writer:
                for name in names:
                    ids_TLK = random_ids(rng, 2)
                    writer.add(list(ids_TLK.swapaxes(0, 1)), prompt_hash=name, **common)
        return found(open_trace(path), "Q11")

    return run


def test_q11_ranks_share_the_requests_out(ranked: Any) -> None:
    check = ranked(["a", "b", "c"], ["d", "e"])
    assert (check.status, check.value) == (Status.PASS, "2 ranks, 0 of 5 requests in several")
    check = ranked(["a", "b", "c"], ["c", "d"])
    assert (check.status, check.value) == (Status.NOTE, "2 ranks, 1 of 4 requests in several")
    check = ranked(["a", "b", "c"], ["d"], ["c", "a"])
    assert check.status is Status.FAIL
    assert check.value == "every request of rank 2 is another rank's too"
    assert ranked(["a", "b"]).status is Status.SKIP


def test_q11_requests_without_a_name_are_not_compared(ranked: Any) -> None:
    assert ranked([""] * 3, [""] * 3).reason == "nothing tells the ranks' requests apart"
    assert ranked([""] * 3, [""] * 3, request_id="x").status is Status.FAIL
    assert ranked([""] * 3, [""] * 3, doc_id=4).status is Status.FAIL
    # One prompt again and again: each rank has its share of the requests.
    assert ranked(["a", "b"] * 3, ["b", "a", "a", "b"]).status is Status.SKIP
    assert ranked(["a", "b"] * 3 + ["c"], ["b", "a", "a", "b"]).status is Status.PASS
    assert ranked(["a", "b"] * 3, ["b", "a", "a", "b"], doc_id=4).status is Status.FAIL
    # Answered from another run: the model did not run it again.
    assert ranked(["a"], ["a"], multiplicity=0).status is Status.SKIP


def test_q11_stages_share_the_layers_out(ranked: Any) -> None:
    def stages(*layers: list[int]) -> dict[str, Any]:
        return {"stages": {str(n): {"layers": found} for n, found in enumerate(layers)}}

    check = ranked(["a"], facts=stages([2], [5]))
    assert (check.status, check.value[-8:]) == (Status.PASS, "2 stages")
    check = ranked(["a"], facts=stages([2], [2, 5]))
    assert (check.status, check.value) == (Status.FAIL, "layer 2 in 2 stages")
    check = ranked(["a"], facts=stages([2], [3]))
    assert (check.status, check.value) == (Status.FAIL, "layer 5 in 0 stages")
    with pytest.raises(TraceError, match="has no layers"):
        ranked(["a"], facts={"stages": {"0": {"layers": [[2]]}}})


RESULTS = {"law": {"alias": "law", "acc,none": 0.5, "acc_stderr,none": 0.125, "sample_len": 16}}


@pytest.mark.parametrize(
    ("control", "status", "value"),
    [
        ({"acc,none": 0.5, "acc_stderr,none": 0.1}, Status.PASS, "1 of 1 scores equal"),
        ({"acc,none": 0.4375}, Status.NOTE, "0 of 1 scores equal; law acc 0.5, not 0.4375"),
        ({"acc,none": 0.25}, Status.FAIL, "0 of 1 scores equal; law acc 0.5, not 0.25"),
        ({"acc,strict": 0.25, "acc_stderr,none": 0.1}, Status.SKIP, ""),
    ],
)
def test_q16_compares_scores(
    ranked: Any, tmp_path: Path, control: dict[str, float], status: Status, value: str
) -> None:
    ranked(["a"], facts={"results": RESULTS, "control": {"results": {"law": control}}})
    check = found(open_trace(tmp_path / "trace"), "Q16")
    assert (check.status, check.value) == (status, value)


def test_q16_without_a_standard_error_nothing_is_noise(ranked: Any, tmp_path: Path) -> None:
    results = {"law": {"acc,none": 0.5, "acc_stderr,none": "N/A"}}
    control = {"results": {"law": {"acc,none": 0.4375}}}
    ranked(["a"], facts={"results": results, "control": control})
    assert found(open_trace(tmp_path / "trace"), "Q16").status is Status.FAIL
    ranked(["a"], facts={"results": results})
    check = found(open_trace(tmp_path / "trace"), "Q16")
    assert (check.status, "control" in check.reason) == (Status.SKIP, True)


def test_q10_is_skipped_with_its_reason(ranked: Any, tmp_path: Path) -> None:
    ranked(["a"])
    check = found(open_trace(tmp_path / "trace"), "Q10")
    assert check.status is Status.SKIP
    assert "no scores" in check.reason
