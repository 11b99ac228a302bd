"""Whether tokens of one prompt that were stored more than once chose the same experts. Additive.

A sequence shares the rows of an equal prompt that came before it, so this has what was not shared:
the runs of another rank, of a later session or of another subject. Only prompts are compared, since
what follows them may differ.

Shape suffixes: T tokens of a block, K slots, L layers, S sequences of repeated prompts, E their
stored prompt tokens, P pairs of such tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Self

import numpy as np
import pyarrow as pa

from moe_probe.analysis.accumulators import files
from moe_probe.analysis.reading.source import Rows
from moe_probe.trace import LayerSpec

_MAX_TOKENS = 1 << 16


class Repeats:
    """A fingerprint of each repeated token's experts in each layer; order of slots aside.

    Args:
        sequences: The sequences of the trace.
        layers: The layers to compare, by the model's own index.
        max_tokens: Prompts are taken in order, and the last one is cut, to have this many stored
            tokens at most.
    """

    kind = "repeats"
    """Name in files."""
    weights = False
    lookahead = False

    def __init__(
        self,
        sequences: pa.Table,
        layers: Mapping[int, LayerSpec],
        *,
        max_tokens: int = _MAX_TOKENS,
    ) -> None:
        self.layers = dict(layers)
        self._place = {layer: place for place, layer in enumerate(layers)}
        chosen = _repeated(sequences, max_tokens)
        self.prompts = len(chosen)
        stored = sorted(row for group in chosen for row in group)
        self._sequence_id_S = np.array([row[0] for row in stored], np.int64)
        self._start_S = np.array([row[1] for row in stored], np.int64)
        length_S = np.array([row[2] - row[1] for row in stored], np.int64)
        self._offset_S = np.cumsum([0, *length_S.tolist()])
        tokens = int(self._offset_S[-1])
        self._seen_E = np.zeros(tokens, bool)
        self._prints_LE = np.zeros((len(layers), tokens), np.uint64)
        offset = dict(zip(self._sequence_id_S.tolist(), self._offset_S.tolist(), strict=False))
        self._left_P, self._right_P = _pairs(chosen, offset)

    def add(self, rows: Rows, layer: int, kernels: ModuleType) -> None:
        """Note one layer of a part."""
        if not self.prompts:
            return
        stretches = rows.part.stretches
        length_R = stretches.length_R
        # Rows of sequences that the trace lacks have no id, and no sequence has -1.
        sequence_R = np.append(rows.index.sequence_id_S, -1)[stretches.sequence_R]
        first_R = stretches.position_R - stretches.start_R
        position_T = np.arange(len(rows)) + np.repeat(first_R, length_R)
        number_T = self.locate(np.repeat(sequence_R, length_R), position_T)
        self.add_arrays(layer, number_T, rows.topk_ids(layer))

    def locate(self, sequence_id_T: np.ndarray, position_T: np.ndarray) -> np.ndarray:
        """Return the number of each row among the repeated tokens, -1 for all others: int64 [T]."""
        index_T = np.searchsorted(self._sequence_id_S, sequence_id_T)
        index_T = np.minimum(index_T, len(self._sequence_id_S) - 1)
        place_T = position_T - self._start_S[index_T]
        length_T = np.diff(self._offset_S)[index_T]
        is_known_T = self._sequence_id_S[index_T] == sequence_id_T
        is_known_T &= (place_T >= 0) & (place_T < length_T)
        return np.where(is_known_T, self._offset_S[index_T] + place_T, -1)

    def add_arrays(self, layer: int, number_T: np.ndarray, ids_TK: np.ndarray) -> None:
        """Note one layer of some rows, which `locate` has numbered."""
        is_known_T = number_T >= 0
        number_T = number_T[is_known_T]
        self._seen_E[number_T] = True
        self._prints_LE[self._place[layer], number_T] = fingerprints(ids_TK[is_known_T])

    def merge(self, other: Self) -> None:
        """Add what another shard saw; raises ValueError if its trace or layers are others."""
        is_same = np.array_equal(other._sequence_id_S, self._sequence_id_S)
        if not is_same or other.layers != self.layers:
            raise ValueError("repeats of different traces or layers cannot be merged")
        self._prints_LE[:, other._seen_E] = other._prints_LE[:, other._seen_E]
        self._seen_E |= other._seen_E

    def agreement(self) -> tuple[int, dict[int, int]]:
        """Return the pairs of tokens that were compared, and by layer those with equal experts."""
        both_P = self._seen_E[self._left_P] & self._seen_E[self._right_P]
        left_P, right_P = self._left_P[both_P], self._right_P[both_P]
        equal_L = [int((row[left_P] == row[right_P]).sum()) for row in self._prints_LE]
        return len(left_P), dict(zip(self.layers, equal_L, strict=True))

    def save(self, path: Path) -> None:
        """Write a file that `load` reads; numpy's own format, compressed, without pickle."""
        specs = [spec.to_json() for spec in self.layers.values()]
        arrays = {name: getattr(self, f"_{name}") for name in _ARRAYS}
        files.write(path, self.kind, {"layers": specs, "prompts": self.prompts}, arrays)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote; raises TraceError for anything else."""
        with files.reading(path, cls.kind) as (header, arrays):
            self = cls.__new__(cls)
            self.layers = files.layers_of(header)
            self._place = {layer: place for place, layer in enumerate(self.layers)}
            self.prompts = header["prompts"]
            for name in _ARRAYS:
                setattr(self, f"_{name}", arrays[name])
            return self


_ARRAYS = (
    *("sequence_id_S", "start_S", "offset_S"),
    *("seen_E", "prints_LE", "left_P", "right_P"),
)


def fingerprints(ids_TK: np.ndarray) -> np.ndarray:
    """Return a number of each row's experts, whatever the order of its slots: uint64 [T]."""
    return np.asarray(_values_of_ids()[ids_TK].sum(axis=1))


@cache
def _values_of_ids() -> np.ndarray:
    # Sums of random numbers, unlike ids, differ whenever sets do.
    return np.random.default_rng(0).integers(0, 1 << 64, 1 << 16, np.uint64)


_Stored = tuple[int, int, int]


def _repeated(sequences: pa.Table, max_tokens: int) -> list[list[_Stored]]:
    """Group (sequence, first and end of the stored prompt) by prompt, where there are several."""
    names = ("sequence_id", "prompt_hash", "prefix_tokens", "choice_end", "sampled", "rows_kept")
    columns = (sequences[name].to_pylist() for name in names)
    groups: dict[str, list[_Stored]] = {}
    for sequence, prompt, start, stop, sampled, kept in zip(*columns, strict=True):
        if prompt and sampled and kept and start < stop:
            groups.setdefault(prompt, []).append((sequence, start, stop))
    chosen, room = [], max_tokens
    for group in groups.values():
        if len(group) > 1:
            taken = []
            for sequence, start, stop in sorted(group, key=lambda stored: stored[1]):
                stop = min(stop, start + room)
                if start < stop:
                    taken.append((sequence, start, stop))
                    room -= stop - start
            chosen.append(taken)
    return [taken for taken in chosen if len(taken) > 1]


def _pairs(groups: list[list[_Stored]], offset: Mapping[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Pair each repeated token with that of the sequence that stored most of its prompt."""
    left, right = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for (first, start, stop), *others in groups:
        for other, other_start, other_stop in others:
            position = np.arange(max(start, other_start), min(stop, other_stop))
            left.append(offset[first] + position - start)
            right.append(offset[other] + position - other_start)
    return np.concatenate(left), np.concatenate(right)
