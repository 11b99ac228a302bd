"""Which sequence of one trace had the same context as a sequence of another one.

A context is all tokens up to one. It is hashed at the ends of every sequence's stretches, from
token ids, with shared leading tokens taken from whoever stores them. Where a trace has no token ids
the recorded hashes of whole prompts have to do. Equal contexts have equal beginnings, so one common
end aligns all tokens before it.

Shape suffixes: S sequences, E ends of each one's stretches, ascending, Q contexts to hash, U those
of them that some sequence's own rows end, R stretches of stored rows, T tokens of a part.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from moe_probe.analysis.reading.index import column
from moe_probe.analysis.reading.source import Source

LENGTH_BITS = 25
"""Of a number of tokens, which is 2^24 at most."""
_CHOICE_END = 3


@dataclass(frozen=True)
class Marks:
    """Contexts at the ends of stretches, in the order of the trace's sequences."""

    length_SE: np.ndarray
    """Tokens of each context; of equal ones of a sequence the first counts."""
    key_SE: np.ndarray
    """Hash of the tokens: uint64."""
    known_SE: np.ndarray
    """Whether there is a context, and its hash is known."""


def context_marks(source: Source, *, token_ids: bool) -> Marks:
    """Hash the contexts of a trace.

    Args:
        source: Its rows.
        token_ids: From the token ids, which it must have; else from hashes of prompts.
    """
    index = source.index
    if not token_ids:
        return _prompt_marks(source)
    # One engine runs a choice's last token and the other does not: both ran what was asked about.
    ends = (index.ends_S4, index.asked_end_S, index.num_tokens_S)
    length_SE = np.sort(np.column_stack(ends), axis=1)
    is_new_SE = np.diff(length_SE, axis=1, prepend=0) > 0
    sequence_Q = np.repeat(np.arange(len(length_SE)), length_SE.shape[1])
    key_Q, known_Q = _hashed(source, sequence_Q, length_SE.ravel())
    shape = length_SE.shape
    return Marks(length_SE, key_Q.reshape(shape), known_Q.reshape(shape) & is_new_SE)


def _prompt_marks(source: Source) -> Marks:
    hashes = source.trace.sequences.sort_by("sequence_id")["prompt_hash"].to_pylist()
    length_S1 = source.index.ends_S4[:, _CHOICE_END, None]
    key_S = np.array([_digest(text) for text in hashes], np.uint64)
    known_S = np.array([bool(text) for text in hashes], bool)
    return Marks(length_S1, key_S[:, None], known_S[:, None] & (length_S1 > 0))


def common_contexts(first: Marks, second: Marks) -> tuple[np.ndarray, np.ndarray]:
    """Find for each sequence the one of the other trace with which it begins alike.

    Of several with the same context the n-th of one trace belongs to the n-th of the other.

    Returns:
        The other's sequence, -1 for none, and how many leading tokens are common: two int64 [S].
    """
    known = np.flatnonzero(second.known_SE)
    order = known[np.argsort(second.key_SE.ravel()[known], kind="stable")]
    key_Q = second.key_SE.ravel()[order]
    ends = second.known_SE.shape[1]
    partner_S = np.full(len(first.length_SE), -1, np.int64)
    common_S = np.zeros(len(first.length_SE), np.int64)
    rank_SE = _occurrence(first)
    for end in range(first.length_SE.shape[1]):
        begin_S = np.searchsorted(key_Q, first.key_SE[:, end])
        number_S = np.searchsorted(key_Q, first.key_SE[:, end], side="right") - begin_S
        found_S = np.flatnonzero(first.known_SE[:, end] & (number_S > 0))
        nth_S = np.minimum(rank_SE[found_S, end], number_S[found_S] - 1)
        place_S = order[begin_S[found_S] + nth_S]
        # Equal hashes of prompts may belong to prompts that were cut otherwise.
        same_S = second.length_SE.ravel()[place_S] == first.length_SE[found_S, end]
        partner_S[found_S[same_S]] = place_S[same_S] // ends
        common_S[found_S[same_S]] = first.length_SE[found_S[same_S], end]
    return partner_S, common_S


def _occurrence(marks: Marks) -> np.ndarray:
    """How many earlier contexts of the trace are equal: int64 [S, E]."""
    known = np.flatnonzero(marks.known_SE)
    order = known[np.argsort(marks.key_SE.ravel()[known], kind="stable")]
    key_Q = marks.key_SE.ravel()[order]
    rank = np.zeros(marks.key_SE.size, np.int64)
    rank[order] = np.arange(len(order)) - np.searchsorted(key_Q, key_Q)
    return rank.reshape(marks.key_SE.shape)


def _hashed(
    source: Source, sequence_Q: np.ndarray, length_Q: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Hash the first tokens of sequences, across those that store them for others.

    The hash is a sum over tokens, so it adds up along the chain of who stores what.
    """
    owner_S, shared_S = owners(source)
    known_Q = length_Q > 0
    steps: list[tuple[np.ndarray, np.ndarray]] = []
    open_Q = np.flatnonzero(known_Q)
    sequence, length = sequence_Q[open_Q], length_Q[open_Q]
    while len(open_Q):
        is_own = length > shared_S[sequence]
        steps.append((open_Q[is_own], sequence[is_own] << LENGTH_BITS | length[is_own]))
        length = np.minimum(length, shared_S[sequence])
        sequence = owner_S[sequence]
        # Tokens that an engine's cache gave are stored nowhere.
        known_Q[open_Q[(length > 0) & (sequence < 0)]] = False
        goes_on = (length > 0) & (sequence >= 0)
        open_Q, sequence, length = open_Q[goes_on], sequence[goes_on], length[goes_on]
    code_U = np.unique(np.concatenate([np.empty(0, np.int64), *(code for _, code in steps)]))
    sum_U, found_U = _own_sums(source, code_U, shared_S)
    key_Q = np.zeros(len(length_Q), np.uint64)
    for query, code in steps:
        place = np.searchsorted(code_U, code)
        key_Q[query] += sum_U[place]
        known_Q[query[~found_U[place]]] = False
    return key_Q, known_Q


def owners(source: Source) -> tuple[np.ndarray, np.ndarray]:
    """Who stores each sequence's leading tokens (-1 for nobody), and how many: two int64 [S]."""
    ids_S = source.index.sequence_id_S
    table = source.trace.sequences.sort_by("sequence_id")
    prefix_id_S = column(table, "prefix_id")
    owner_S = np.minimum(np.searchsorted(ids_S, prefix_id_S), len(ids_S) - 1)
    # Sharing points to earlier sequences; what does not is no sharing, and would never end.
    is_sound_S = (ids_S[owner_S] == prefix_id_S) & (owner_S < np.arange(len(ids_S)))
    return np.where(is_sound_S, owner_S, -1), column(table, "prefix_tokens")


def _own_sums(
    source: Source, code_U: np.ndarray, shared_S: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Sum the hashes of stored tokens from the first of a sequence to each asked length."""
    sum_U, found_U = np.zeros(len(code_U), np.uint64), np.zeros(len(code_U), bool)
    for part in source.parts:
        rows = part.stretches
        token_T = source.token_ids(part)
        _, position_T = rows.tokens()
        total_T = np.concatenate([np.zeros(1, np.uint64), np.cumsum(_mixed(token_T, position_T))])
        is_whole_R = (rows.sequence_R >= 0) & (rows.position_R == shared_S[rows.sequence_R])
        sequence_R, start_R, position_R, length_R = (
            values[is_whole_R]
            for values in (rows.sequence_R, rows.start_R, rows.position_R, rows.length_R)
        )
        low_R = np.searchsorted(code_U, sequence_R << LENGTH_BITS | position_R + 1)
        high_R = np.searchsorted(
            code_U, sequence_R << LENGTH_BITS | position_R + length_R, side="right"
        )
        number_R = high_R - low_R
        within = np.arange(int(number_R.sum())) - np.repeat(
            np.cumsum(number_R) - number_R, number_R
        )
        place = np.repeat(low_R, number_R) + within
        asked = (code_U[place] & (1 << LENGTH_BITS) - 1) - np.repeat(position_R, number_R)
        begin = np.repeat(start_R, number_R)
        sum_U[place] = total_T[begin + asked] - total_T[begin]
        found_U[place] = True
    return sum_U, found_U


def _mixed(token_T: np.ndarray, position_T: np.ndarray) -> np.ndarray:
    """Scatter (token, position) over 64 bits: the finalizer of splitmix64, Steele et al. (2014)."""
    bits_T = token_T.astype(np.uint64) + ((position_T.astype(np.uint64) + 1) << np.uint64(32))
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        bits_T = (bits_T ^ (bits_T >> np.uint64(shift))) * np.uint64(factor)
    return np.asarray(bits_T ^ (bits_T >> np.uint64(31)))


def _digest(text: str) -> int:
    return int.from_bytes(
        blake2b(text.encode("utf-8", "replace"), digest_size=8).digest(), "little"
    )
