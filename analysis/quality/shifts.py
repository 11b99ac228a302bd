"""Q18: whether rows hold the experts of their own token, or those of the one before or behind.

Shape suffixes: E rows of the sample, P pairs of rows, K slots; 3 is the token before, own, behind.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from moe_probe.analysis.accumulators.row_sample import RowSample
from moe_probe.analysis.quality.outcome import NO_ROWS, Check, Status, fact, pass_if
from moe_probe.trace import Trace

_DIFFERENT = 1000
"""Pairs that differ by chance, from which dependence is known to 0.03: where most tokens have the
same experts, that takes many pairs."""
_DEPENDENCE, _CLEAR, _TIMES = 0.05, 0.1, 2
_CONTROL = 3
"""Rows further on in the sample: another token, and mostly the same document."""


class Dependence(NamedTuple):
    """How much more alike rows with one token in common are: 1 where it decides the experts."""

    before: float
    own: float
    behind: float
    different: float
    """Of the token that has the fewest: pairs, times the share of slots that differ by chance."""


def own_token(trace: Trace, sample: RowSample | None) -> Check:
    """Compare which token decides experts: each row's own, the one before, or the one behind.

    In the first MoE layer they depend most on the token itself. Two rows with that token in common
    and other neighbours are compared with two that have the token before, or behind, in common and
    other tokens of their own; what they agree in is measured from rows as far apart without a token
    in common up to all slots. Where a neighbour decides twice as much as the own token, rows are
    shifted. Prompts and generated text are looked at apart, since engines capture them apart. Of
    rows with the same three tokens one is enough: a prompt that was run again says nothing new.
    """
    name = "experts are those of the row's own token"
    if sample is None:
        return Check("Q18", name, Status.SKIP, reason=NO_ROWS)
    depth = fact(trace, "num_layers")
    if depth is not None and 2 * sample.first_layer >= depth:
        reason = f"layer {sample.first_layer} is the first: experts depend less on the token there"
        return Check("Q18", name, Status.SKIP, reason=reason)
    found = {
        text: dependence(sample, is_here_E)
        for text, is_here_E in (
            ("prompts", ~sample.is_generated_E),
            ("generated text", sample.is_generated_E),
        )
    }
    found = {text: each for text, each in found.items() if each.different >= _DIFFERENT}
    if not found:
        reason = "no token ids, or too few rows with one token in common that could differ"
        return Check("Q18", name, Status.SKIP, reason=reason)
    told = {text: each for text, each in found.items() if max(each[:3]) >= _DEPENDENCE}
    if not told:
        reason = f"experts of layer {sample.first_layer} depend too little on tokens to tell"
        return Check("Q18", name, Status.SKIP, reason=reason)
    shifted = {text: each for text, each in told.items() if _is_shifted(each)}
    text, each = next(iter((shifted or told).items()))
    before, own, behind = (max(value, 0.0) for value in each[:3])
    value = f"own token {own:.2f}, before {before:.2f}, behind {behind:.2f}"
    if shifted:
        where = "before" if each.before > each.behind else "behind"
        value = f"rows of {text} have the experts of the token {where}: {value}"
    return Check("Q18", name, pass_if(not shifted), value, "own token most; 1 decides all")


def _is_shifted(found: Dependence) -> bool:
    other = max(found.before, found.behind)
    return other >= _CLEAR and other >= _TIMES * found.own


def dependence(sample: RowSample, is_here_E: np.ndarray) -> Dependence:
    """Measure by how much tokens decide the experts of the first layer, in some rows.

    Args:
        sample: The rows.
        is_here_E: Those to compare, bool [E].
    """
    here_E = np.flatnonzero(is_here_E)
    here_E = here_E[_first_of_each(sample.tokens_3E[:, here_E])]
    tokens_3E, ids_EK = sample.tokens_3E[:, here_E], sample.ids_EK[here_E]
    none_id = sample.layers[sample.first_layer].none_id
    before, own, behind = range(3)
    found: list[float] = []
    different: list[float] = []
    for shared, others in ((before, [own]), (own, [before, behind]), (behind, [own])):
        left_P, right_P = _pairs(tokens_3E, shared, others)
        control_P = np.minimum(right_P + _CONTROL, len(here_E) - 1)
        is_other_P = (tokens_3E[own, left_P] != tokens_3E[own, control_P]) & (control_P > right_P)
        left_Q, control_Q = left_P[is_other_P], control_P[is_other_P]
        base = _agreement(ids_EK, left_Q, control_Q, none_id)
        alike = _agreement(ids_EK, left_P, right_P, none_id)
        found.append((alike - base) / (1 - base) if base < 1 else 0.0)
        different.append(len(left_Q) * (1 - base))
    return Dependence(found[before], found[own], found[behind], min(different))


def _first_of_each(tokens_3E: np.ndarray) -> np.ndarray:
    """Return the first row of each three tokens, in the order of rows: int64."""
    _, first = np.unique(tokens_3E, axis=1, return_index=True)
    return np.sort(first)


def _pairs(tokens_3E: np.ndarray, shared: int, others: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Pair each row with the next one that shares a token, where others differ: two int64 [P]."""
    order_E = np.argsort(tokens_3E[shared], kind="stable")
    left_P, right_P = order_E[:-1], order_E[1:]
    token_P = tokens_3E[shared, left_P]
    is_pair_P = (token_P == tokens_3E[shared, right_P]) & (token_P >= 0)
    for other in others:
        is_pair_P &= tokens_3E[other, left_P] != tokens_3E[other, right_P]
    return left_P[is_pair_P], right_P[is_pair_P]


def _agreement(
    ids_EK: np.ndarray, left_P: np.ndarray, right_P: np.ndarray, none_id: int | None
) -> float:
    """Share of the slots of one row whose experts the other has, too; empty ones left out."""
    left_PK, right_PK = ids_EK[left_P], ids_EK[right_P]
    is_filled_PK = left_PK != none_id if none_id is not None else np.ones(left_PK.shape, bool)
    is_common_PK = np.zeros(left_PK.shape, bool)
    for slot in range(ids_EK.shape[1]):
        is_common_PK |= left_PK == right_PK[:, slot : slot + 1]
    return float((is_common_PK & is_filled_PK).sum() / max(is_filled_PK.sum(), 1))
