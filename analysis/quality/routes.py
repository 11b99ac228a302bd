"""Checks across the layers of one row: Q17, lowest ids, Q19, rows alike, and Q20, layers alike.

Shape suffixes: L layers, E rows of the sample, M numbers of layers, K slots.
"""

from __future__ import annotations

import math

import numpy as np

from moe_probe.analysis.accumulators.repeats import fingerprints
from moe_probe.analysis.accumulators.row_sample import RowSample
from moe_probe.analysis.quality.outcome import NO_ROWS, Check, Status, groups_of, pass_if, some
from moe_probe.analysis.statistics.successes import successes
from moe_probe.trace import LayerSpec

_CHANCE = 1e-5
"""Of a sound trace to fail one of these checks, at most."""
_SURPRISE = 40.0
"""Nats: -ln of the chance that two rows agree in a layer, over all layers, from which two tokens do
not share a route by chance."""
_ROWS = 1 << 12
"""Enough to know that chance."""
_STAGES = 4
"""A fault is in one of so many pipeline stages at least: fewer layers are no sign of one."""
_STALE = 0.001
_FEW = 2
"""Layers in which two rows of tokens that a router hardly tells apart differ."""
_MANY_TOKENS = 20
"""Different tokens of one route; digits and letters of choices are fewer."""


def lowest_everywhere(sample: RowSample | None) -> Check:
    """Look for rows that have the ids 0 to k-1, in whatever order, in many layers at once.

    So reads what was never written: zeros, or the first choice among equal scores. An index means
    nothing to a trained router, so that a token's experts in one layer are those k with chance
    1 / C(N, k), and the expected number of rows that have them in m layers or more is exact for
    random numbering, however layers and tokens depend on one another: a token that every document
    begins with is no exception. The least m with less than one row in 100,000 traces is the limit.
    Of a router with G groups, groups and the experts within each may have been numbered otherwise.
    """
    name = "rows of the lowest ids in many layers"
    if sample is None:
        return Check("Q17", name, Status.SKIP, reason=NO_ROWS)
    rows = len(sample.row_E)
    chance_M = successes(map(_chance_of_lowest, sample.layers.values()))
    tail_M = chance_M[::-1].cumsum()[::-1]
    rare = np.flatnonzero(rows * tail_M <= _CHANCE)
    rare = rare[rare >= max(2, len(sample.layers) / _STAGES)]
    if not len(rare):
        reason = "such rows are normal with few experts or layers"
        return Check("Q17", name, Status.SKIP, reason=reason)
    layers_E = np.zeros(rows, np.int64)
    for spec, print_E in zip(sample.layers.values(), sample.prints_LE, strict=True):
        lowest = fingerprints(np.arange(spec.top_k, dtype=spec.dtype)[None]).astype(np.uint32)
        layers_E += print_E == lowest
    found = int((layers_E >= rare[0]).sum())
    value = f"{found:,} of {rows:,} rows, at most {layers_E.max(initial=0)} layers of one"
    return Check("Q17", name, pass_if(not found), value, f"< {rare[0]} layers of one row")


def _chance_of_lowest(spec: LayerSpec) -> float:
    """Chance of the experts 0 to k-1, where groups and experts within them have any numbers."""
    groups = groups_of(spec)
    size = spec.num_experts // groups
    whole, rest = divmod(spec.top_k, size)
    return 1 / (math.comb(groups, whole) * math.comb(size, rest) * (groups - whole if rest else 1))


def routes_of_own(sample: RowSample | None) -> Check:
    """Look for rows with all experts of the row before, or of rows of many other tokens.

    The first is a buffer that was read before it was written, the second padding. Two different
    tokens do not have the same experts in every layer, unless there are few layers or experts, or
    a router hardly tells them apart. Such tokens differ in one or two layers more often than in
    none, a buffer never: where rows nearly like the one before are more, those like it are no
    fault. Where nobody knows the tokens, they are noted: they may be of one token.
    """
    name = "rows with all experts of another token"
    if sample is None:
        return Check("Q19", name, Status.SKIP, reason=NO_ROWS)
    if sum(map(_surprise, sample.prints_LE)) < _SURPRISE:
        reason = "few layers, or experts in use: different tokens may have the same in all layers"
        return Check("Q19", name, Status.SKIP, reason=reason)
    before_E, token_E = sample.tokens_3E[:2]
    rows = len(token_E)
    alike_E = np.zeros(rows, np.int64)
    alike_E[1:] = (sample.prints_LE[:, 1:] == sample.prints_LE[:, :-1]).sum(axis=0)
    alike_E[~sample.follows_E] = 0
    layers = len(sample.layers)
    is_stale_E = alike_E == layers
    expected = f"<= {_STALE:.1%} of rows"
    if (token_E < 0).any():
        stale = int(is_stale_E.sum())
        status = Status.NOTE if stale > _STALE * rows else Status.PASS
        value = f"{stale:,} of {rows:,} rows like the row before, which may be the same token"
        return Check("Q19", name, status, value, expected)
    is_other_E = before_E != token_E
    is_stale_E &= is_other_E
    # Attention sinks: first tokens of documents may look the same to deeper layers, whichever.
    is_padding_E = (_tokens_of_route(sample) >= _MANY_TOKENS) & (before_E >= 0)
    stale, padding = int(is_stale_E.sum()), int(is_padding_E.sum())
    value = f"{stale:,} of {rows:,} rows like the row before, {padding:,} like many"
    nearly = int((is_other_E & (alike_E >= layers - _FEW) & (alike_E < layers)).sum())
    if 0 < stale <= nearly:
        value += f"; {nearly:,} but for one or two layers, so tokens are alike"
        is_stale_E[:] = False
    is_good = int((is_stale_E | is_padding_E).sum()) <= _STALE * rows
    return Check("Q19", name, pass_if(is_good), value, expected)


def _surprise(print_E: np.ndarray) -> float:
    """-ln of the chance that two rows have the same experts in a layer, in nats."""
    if not len(print_E):
        return 0.0
    some_E = print_E[:: -(-len(print_E) // _ROWS)]
    share = np.unique(some_E, return_counts=True)[1] / len(some_E)
    return float(-np.log((share**2).sum()))


def _tokens_of_route(sample: RowSample) -> np.ndarray:
    """Number of different tokens whose experts in all layers are those of each row: int64 [E]."""
    route_E = np.zeros(len(sample.row_E), np.uint64)
    for print_E in sample.prints_LE:
        # A multiplier that makes layers count apart: the golden ratio of 64 bits.
        route_E = (route_E + print_E) * np.uint64(0x9E3779B97F4A7C15)
        route_E ^= route_E >> np.uint64(29)
    _, number_E = np.unique(route_E, return_inverse=True)
    pairs = np.unique(np.stack([number_E, sample.tokens_3E[1]], axis=1), axis=0)
    return np.asarray(np.bincount(pairs[:, 0])[number_E])


def layers_recorded_once(sample: RowSample | None) -> Check:
    """Look for layers of which every row has the experts of another layer's.

    A row's experts agree by chance with 1 / C(N, k); rows alike count once, as those of one token.
    Of layers that agree in too few different rows nothing can be told.
    """
    name = "layers that are copies"
    if sample is None:
        return Check("Q20", name, Status.SKIP, reason=NO_ROWS)
    if len(sample.layers) < 2:
        return Check("Q20", name, Status.SKIP, reason="one layer")
    copies, unclear = [], False
    by_prints: dict[tuple[int, int, bytes], LayerSpec] = {}
    limit = math.log(math.comb(len(sample.layers), 2) / _CHANCE)
    for spec, print_E in zip(sample.layers.values(), sample.prints_LE, strict=True):
        first = by_prints.setdefault((spec.num_experts, spec.top_k, print_E.tobytes()), spec)
        if first is spec:
            continue
        # Of slots that may be empty, one kind of row has none filled, and others one at least.
        least = 1 if spec.empty_slots else spec.top_k
        different = len(np.unique(print_E)) - spec.empty_slots
        nats = different * math.log(math.comb(spec.num_experts, least))
        if nats > limit:
            copies.append(f"layer {spec.layer} has the experts of layer {first.layer}")
        else:
            unclear = True
    if unclear and not copies:
        reason = "too few different rows: layers may have the same experts by chance"
        return Check("Q20", name, Status.SKIP, reason=reason)
    value = some(copies) if copies else f"{len(sample.layers)} layers differ"
    return Check("Q20", name, pass_if(not copies), value, "none")
