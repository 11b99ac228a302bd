"""Repeated contexts and shared prefixes against brute force."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from moe_probe.evaluation.requests import RowIndex
from moe_probe.recording.contexts import ContextIndex, PrefixStore, token_hash
from moe_probe.recording.rows import Bounds, Request, Row

# Few different tokens, and large ids among them, so that sequences often share a beginning.
PROMPTS = st.lists(
    st.lists(st.sampled_from([0, 1, 255, 256, 70_000]), min_size=1, max_size=6), max_size=30
)


@given(PROMPTS)
def test_new_from_counts_every_distinct_context_once(prompts: list[list[int]]) -> None:
    index = ContextIndex()
    seen: set[tuple[int, ...]] = set()
    for tokens in prompts:
        contexts = {tuple(tokens[: end + 1]) for end in range(len(tokens))}
        new_from = index.add(np.asarray(tokens, np.int32))
        new = {tuple(tokens[: end + 1]) for end in range(new_from, len(tokens))}
        assert new == contexts - seen
        seen |= contexts


@given(PROMPTS)
def test_equal_hash_means_equal_tokens(prompts: list[list[int]]) -> None:
    hashes = {token_hash(np.asarray(tokens, np.int32)) for tokens in prompts}
    assert len(hashes) == len({tuple(tokens) for tokens in prompts})


def row(*tokens: int) -> Row:
    request = Request(task="t", subject="s", area="", doc_id=0, kind="loglikelihood", choice=0)
    return Row(np.asarray(tokens, np.int32), Bounds(0, 1, 1, len(tokens)), 0, [request])


@given(PROMPTS, st.integers(0, 4), st.randoms(use_true_random=False))
def test_every_padded_row_is_found_once(prompts: list[list[int]], pad: int, chance: object) -> None:
    rows = [row(*tokens) for tokens in prompts]
    index = RowIndex(rows)
    width = max((len(tokens) for tokens in prompts), default=0) + pad
    found = []
    order = list(prompts)
    chance.shuffle(order)  # type: ignore[attr-defined]
    for tokens in order:
        padded_T = np.zeros(width, np.int64)
        padded_T[: len(tokens)] = tokens
        match = index.take(padded_T)
        assert match is not None
        # Prompts that differ in trailing zeros only are the same row of the batch.
        assert np.trim_zeros(match.tokens_T, "b").tolist() == np.trim_zeros(tokens, "b")
        found.append(id(match))
    assert sorted(found) == sorted(map(id, rows))
    assert index.take(np.full(width + 1, 9)) is None


def test_a_prefix_that_routes_otherwise_is_not_shared() -> None:
    store, keys = PrefixStore(), {3: "prefix"}
    ids_TB = np.arange(20, dtype=np.uint8).reshape(5, 4)
    assert store.find(keys, ids_TB) == (-1, 0)
    store.add(keys, 7, ids_TB)
    same_TB = ids_TB.copy()
    same_TB[3:] = 0
    assert store.find(keys, same_TB) == (7, 3)
    for _ in range(15):
        store.find(keys, same_TB)
    other_TB = ids_TB.copy()
    other_TB[1, 0] += 1
    # The seventeenth use is verified again: two of three rows agree, so it is stored whole.
    assert store.find(keys, other_TB) == (-1, 0)
    assert (store.check.sequences, store.check.rows, store.check.equal_rows) == (2, 6, 5)
