"""Routers without a model: decisions that depend on token, subject, document and chance.

Slots are drawn one after another without replacement, as Gumbel top-k does, from each layer's
log-normal popularity. Some draws come from favourites of the token id, the subject or the document,
or from the token before, so that these show in the trace; the token id matters most in early layers
and the subject in late ones. With groups, a token keeps to the groups of its first slots.

Shape suffixes: T tokens, D documents, L layers, K slots, N experts, B bytes of one token's ids;
4 sources.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit, uint64

from moe_probe.trace import LayerSpec


@dataclass(frozen=True)
class Shape:
    """What the routers of a model have in common; at most 256 experts."""

    first_layer: int
    num_layers: int
    num_experts: int
    top_k: int
    num_groups: int = 1
    groups_per_token: int = 1

    @property
    def layers(self) -> list[LayerSpec]:
        facts = {"num_groups": self.num_groups, "groups_per_token": self.groups_per_token}
        numbers = range(self.first_layer, self.first_layer + self.num_layers)
        experts, top_k = self.num_experts, self.top_k
        return [LayerSpec(layer=n, num_experts=experts, top_k=top_k, facts=facts) for n in numbers]


SHAPES = {
    "v3": Shape(3, 58, 256, 8, num_groups=8, groups_per_token=4),
    "qwen3": Shape(0, 48, 128, 8),
    "mixtral": Shape(0, 32, 8, 2),
}

_POPULARITY_SIGMA = 0.65
# Natural logarithms of the popularity of the idlest experts, where a layer has many.
_NEAR_IDLE = (-4.0, -6.0, -8.0)
# Shares of the draws by source: the token before, the token id, the subject, the document.
_FIRST_LAYER = (0.04, 0.40, 0.04, 0.06)
_LAST_LAYER = (0.08, 0.15, 0.12, 0.10)
# Of each token id, subject and document; the popularity has none.
_NUM_FAVOURITES = np.array([8, 24, 8, 1])
# 2^64 by the golden ratio: steps of it visit every number.
_STEP = uint64(0x9E3779B97F4A7C15)


class Router:
    """Routes tokens; what it decides depends on the seed and on the order of the tokens only."""

    def __init__(self, shape: Shape, seed: int) -> None:
        self.shape = shape
        self._num_routed = 0
        self._threads = ThreadPoolExecutor(2)
        rng = np.random.default_rng([seed, 0])
        size = shape.num_layers, shape.num_experts
        logit_LN = rng.normal(scale=_POPULARITY_SIGMA, size=size)
        for logit_N in logit_LN if shape.num_experts > 64 else ():
            logit_N[rng.choice(shape.num_experts, len(_NEAR_IDLE), replace=False)] = _NEAR_IDLE
        self._keep_LN, self._other_LN = alias_tables(np.exp(logit_LN))
        shares_L4 = np.linspace(_FIRST_LAYER, _LAST_LAYER, shape.num_layers)
        self._bounds_L4 = (shares_L4.cumsum(axis=1) * 2**16).astype(np.uint64)
        self._key_L = rng.integers(2**64, size=shape.num_layers, dtype=np.uint64)

    def route(self, token_id_T: np.ndarray, lengths_D: np.ndarray, subject: int) -> np.ndarray:
        """Packed ids uint8 [T, B] of whole documents: distinct experts, the likeliest first."""
        shape = self.shape
        # A document is known by the number of its first token.
        document_D = self._num_routed + lengths_D.cumsum() - lengths_D
        tokens = token_id_T.astype(np.uint64), np.repeat(document_D, lengths_D).astype(np.uint64)
        ids_TLK = np.empty((len(token_id_T), shape.num_layers, shape.top_k), np.uint8)
        groups = np.uint64(shape.num_experts // shape.num_groups), shape.groups_per_token

        def route_layers(index_L: np.ndarray) -> None:
            layers = slice(index_L[0], index_L[-1] + 1)
            tables = self._keep_LN[layers], self._other_LN[layers], self._bounds_L4[layers]
            origin = self._key_L[layers], self._num_routed, np.uint64(subject)
            _route(ids_TLK[:, layers], *tokens, *tables, *groups, *origin)

        list(self._threads.map(route_layers, np.array_split(np.arange(shape.num_layers), 2)))
        self._num_routed += len(token_id_T)
        return ids_TLK.reshape(len(ids_TLK), -1)


def alias_tables(weights_LN: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Walker's alias tables: the chance to keep a column, in 2^-16, and what replaces it."""
    num_columns = weights_LN.shape[1]
    keep_LN = np.full(weights_LN.shape, 2**16 - 1, np.uint16)
    other_LN = np.tile(np.arange(num_columns, dtype=np.uint8), (len(weights_LN), 1))
    for weights_N, keep_N, other_N in zip(weights_LN, keep_LN, other_LN, strict=True):
        scaled_N = weights_N * (num_columns / weights_N.sum())
        small, large = list(np.flatnonzero(scaled_N < 1)), list(np.flatnonzero(scaled_N >= 1))
        while small and large:
            low, high = small.pop(), large[-1]
            keep_N[low], other_N[low] = scaled_N[low] * 2**16, high
            scaled_N[high] -= 1 - scaled_N[low]
            if scaled_N[high] < 1:
                small.append(large.pop())
    return keep_LN, other_LN


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _mixed(value: Any) -> Any:
    """Spread every bit of a number over all of another: the finaliser of splitmix64."""
    value = (value ^ (value >> uint64(30))) * uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> uint64(27))) * uint64(0x94D049BB133111EB)
    return value ^ (value >> uint64(31))


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _route(
    ids_TLK: Any,
    token_id_T: Any,
    document_T: Any,
    keep_LN: Any,
    other_LN: Any,
    bounds_L4: Any,
    group_size: Any,
    groups_per_token: int,
    key_L: Any,
    first: int,
    subject: Any,
) -> None:
    num_tokens, num_layers, top_k = ids_TLK.shape
    num_experts, sixteen_bits = uint64(keep_LN.shape[1]), uint64(0xFFFF)
    # Of each source but the token before: what its favourites depend on, and how many there are.
    origin_4, number_4 = np.zeros(4, np.uint64), _NUM_FAVOURITES.astype(np.uint64)
    origin_4[1] = (subject << uint64(8)) ^ uint64(1 << 60)
    taken_4 = np.empty(4, np.uint64)
    for t in range(num_tokens):
        continues = t > 0 and document_T[t] == document_T[t - 1]
        origin_4[0] = token_id_T[t] << uint64(8)
        origin_4[2] = (document_T[t] << uint64(8)) ^ uint64(2 << 60)
        for layer in range(num_layers):
            key = key_L[layer]
            state = _mixed(key + uint64(first + t) * _STEP)
            filled, groups, num_groups = 0, uint64(0), 0
            taken_4[:] = uint64(0)
            while filled < top_k:
                state += _STEP
                bits = _mixed(state)
                chosen, pick = bits & sixteen_bits, (bits >> uint64(16)) & sixteen_bits
                if chosen < bounds_L4[layer, 0]:
                    if not continues:
                        continue
                    expert = uint64(ids_TLK[t - 1, layer, (pick * uint64(top_k)) >> uint64(16)])
                else:
                    # No branches, which would be guessed wrong: a favourite is a draw that comes
                    # out alike every time, and one of the popularity is a favourite of its own.
                    source = int(chosen >= bounds_L4[layer, 1]) + int(chosen >= bounds_L4[layer, 2])
                    source += int(chosen >= bounds_L4[layer, 3])
                    origin_4[3] = state
                    favourite = (pick * number_4[source]) >> uint64(16)
                    draw = _mixed(key ^ (origin_4[source] + favourite))
                    expert = ((draw >> uint64(40)) * num_experts) >> uint64(24)
                    is_kept = (draw & sixteen_bits) <= uint64(keep_LN[layer, expert])
                    expert = expert if is_kept else uint64(other_LN[layer, expert])
                word, bit = expert >> uint64(6), uint64(1) << (expert & uint64(63))
                group = uint64(1) << (expert // group_size)
                is_new_group = (groups & group) == uint64(0)
                is_beyond = is_new_group & (num_groups == groups_per_token)
                if ((taken_4[word] & bit) != uint64(0)) | is_beyond:
                    continue
                taken_4[word] |= bit
                groups |= group
                num_groups += is_new_group
                ids_TLK[t, layer, filled] = expert
                filled += 1
