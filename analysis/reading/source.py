"""A trace as accumulators see it: part by part, layer by layer, cut into pieces that count alike.

Shape suffixes: T tokens of a part, K slots, S sequences of the trace.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from threading import RLock

import numpy as np

from moe_probe.analysis.reading.index import TraceIndex, column
from moe_probe.analysis.reading.passes import PassRows, pass_keys
from moe_probe.analysis.reading.pieces import Pieces, Stretches, by_octave, cut
from moe_probe.analysis.reading.rules import Rule
from moe_probe.analysis.reading.template import Template
from moe_probe.trace import Block, LayerSpec, Trace


@dataclass
class Part:
    """One routing part: what its rows are, read once and kept, since it is small."""

    path: Path
    first_row: int
    """Stored rows of all parts before."""
    stretches: Stretches
    pieces: dict[Rule, Pieces] = field(default_factory=dict)
    template_bits: np.ndarray | None = None
    """Whether each row is of its task's template, eight to a byte; None until that is asked."""
    repeats: dict[tuple[int, ...], np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Rows:
    """Some layers of one part."""

    source: Source
    part: Part
    block: Block
    _pieces: dict[Rule, Pieces] = field(default_factory=dict, repr=False)
    _octaves: dict[Rule, tuple[Pieces, np.ndarray]] = field(default_factory=dict, repr=False)
    _passes: dict[Rule, PassRows] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return self.part.stretches.rows

    @property
    def index(self) -> TraceIndex:
        return self.source.index

    @property
    def first_row(self) -> int:
        """Stored rows of all parts before."""
        return self.part.first_row

    def pieces(self, rule: Rule) -> Pieces:
        """The rows that a rule counts."""
        if rule not in self._pieces:
            self._pieces[rule] = self.source.pieces(self.part, rule)
        return self._pieces[rule]

    def weight_T(self, rule: Rule) -> np.ndarray:
        """How often a rule counts each row: int64 [T]."""
        pieces, change_T = self.pieces(rule), np.zeros(len(self) + 1, np.int64)
        change_T[pieces.start_P] += pieces.weight_P
        change_T[pieces.stop_P] -= pieces.weight_P
        return change_T[:-1].cumsum()

    def octaves(self, rule: Rule) -> tuple[Pieces, np.ndarray]:
        """The same, cut by position into octaves, and the octave of each piece."""
        if rule not in self._octaves:
            self._octaves[rule] = by_octave(self.pieces(rule))
        return self._octaves[rule]

    def passes(self, rule: Rule) -> PassRows:
        """The rows that a rule counts and the forward passes that ran them; looked up once."""
        if rule not in self._passes:
            key_T = self.source.pass_keys(self.part)
            self._passes[rule] = PassRows.of(self.pieces(rule), key_T)
        return self._passes[rule]

    def topk_ids(self, layer: int) -> np.ndarray:
        """Expert ids [T, K] of one layer, of all rows of the part."""
        return self.block.topk_ids(layer)

    def topk_weights(self, layer: int) -> np.ndarray:
        """Gate weights float16 [T, K] beside the ids; only in a scan that reads weights."""
        return self.block.topk_weights(layer)

    def router_scalars(self, layer: int) -> np.ndarray:
        """ROUTER_SCALARS float16 [T, 3] of a layer that has them, likewise."""
        return self.block.router_scalars(layer)

    def repeats_T(self, lags: tuple[int, ...]) -> np.ndarray:
        """Which earlier tokens a row repeats: uint8 [T], bit x for the one `lags[x]` before it."""
        return self.source.repeats(self.part, lags)


class Source:
    """The rows of a trace, to be read as often as there are groups of layers.

    Making one reads the columns that say whose rows they are, and checks them.

    Raises:
        TraceError: the trace has no per-token rows, or is damaged.
    """

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.layers: dict[int, LayerSpec] = trace.layers
        self.index = TraceIndex.of(trace)
        sequences = len(self.index.sequence_id_S)
        self.rows_S = np.zeros(sequences, np.int64)
        """Stored rows of each sequence."""
        self.position_sum_S = np.zeros(sequences, np.int64)
        """Sum of their positions."""
        self.parts: list[Part] = []
        for path in trace.routing_parts:
            self.parts.append(self._part(path))
        self._template: Template | None = None
        # What is made once and kept is asked for by several threads at a time.
        self._making = RLock()

    @property
    def num_rows(self) -> int:
        """Stored rows over all sequences of the trace."""
        return int(self.rows_S.sum())

    @property
    def num_selections(self) -> int:
        """Expert ids in those rows."""
        return self.num_rows * sum(spec.top_k for spec in self.layers.values())

    @cached_property
    def has_token_ids(self) -> bool:
        """Whether the trace says which token each row is."""
        filled = [part for part in self.parts if part.stretches.rows]
        return bool(filled) and all((self.token_ids(part) >= 0).all() for part in filled)

    @cached_property
    def has_repeated_rows(self) -> bool:
        """Whether the model ran some stored row several times."""
        return any((self.pieces(part, Rule.RAW).weight_P > 1).any() for part in self.parts)

    def read(self, layers: Sequence[int], *, weights: bool = False) -> Iterator[Rows]:
        """Yield some layers of every part, in recording order."""
        for part in self.parts:
            block = self.trace.read_layers(part.path, list(layers), weights=weights)
            yield Rows(self, part, block)

    def pieces(self, part: Part, rule: Rule) -> Pieces:
        """Return the pieces of a part, which are kept for the next group of layers.

        Those of the rule `no-template` are many: kept is which rows they leave out.
        """
        if rule is Rule.NO_TEMPLATE:
            return self.pieces(part, Rule.UNIQUE).without(self._template_rows(part))
        with self._making:
            if rule not in part.pieces:
                made = cut(self.index, part.stretches, rule)
                # Where rules count alike, one of them does for all.
                alike = (pieces for pieces in part.pieces.values() if pieces.same(made))
                part.pieces[rule] = next(alike, made)
            return part.pieces[rule]

    def _template_rows(self, part: Part) -> np.ndarray:
        """Whether each row is of its task's template: bool [T]."""
        with self._making:
            if part.template_bits is None:
                covered_T = self.template.covers(part.stretches, self.token_ids(part))
                part.template_bits = np.packbits(covered_T)
        return np.unpackbits(part.template_bits, count=part.stretches.rows).view(bool)

    def counts_alike(self, one: Rule, other: Rule) -> bool:
        """Whether two rules count every row of this trace equally often."""
        if Rule.NO_TEMPLATE in (one, other):
            return one is other
        return all(
            self.pieces(part, one).same_rows(self.pieces(part, other)) for part in self.parts
        )

    def repeats(self, part: Part, lags: tuple[int, ...]) -> np.ndarray:
        """Return which earlier tokens each row of a part repeats: see `Rows.repeats_T`."""
        with self._making:
            if lags not in part.repeats:
                token_id_T = self.token_ids(part)
                bits_T = np.zeros(len(token_id_T), np.uint8)
                for number, lag in enumerate(lags):
                    equal_T = token_id_T[lag:] == token_id_T[:-lag]
                    bits_T[lag:] |= (equal_T << number).astype(np.uint8)
                part.repeats[lags] = bits_T
            return part.repeats[lags]

    @property
    def template(self) -> Template:
        """What all documents of a task share; raises TraceError without token ids."""
        with self._making:
            if self._template is None:
                token_ids = map(self.token_ids, self.parts)
                stretches = [part.stretches for part in self.parts]
                self._template = Template.of(self.index, stretches, token_ids)
            return self._template

    def token_ids(self, part: Part) -> np.ndarray:
        """Vocabulary ids int32 [T] of a part; -1 where they were not stored."""
        return self.trace.read_identity(part.path, token_ids=True).token_id_T

    @cached_property
    def rank_S(self) -> np.ndarray:
        """The rank that ran each sequence."""
        return column(self.trace.sequences.sort_by("sequence_id"), "rank")

    def pass_keys(self, part: Part) -> np.ndarray:
        """Rank and forward pass int64 [T] that ran a part's rows, as in `passes.pass_keys`; below
        0 where that is not known."""
        number_T = self.trace.read_identity(part.path, forward_passes=True).forward_pass_T
        stretches = part.stretches
        rank_R = np.where(stretches.sequence_R < 0, -1, self.rank_S[stretches.sequence_R])
        rank_T = np.repeat(rank_R, stretches.length_R)
        return np.where(number_T < 0, -1, pass_keys(rank_T, number_T))

    def _part(self, path: Path) -> Part:
        block = self.trace.read_identity(path)
        stretches = Stretches.of(self.index, block.sequence_id_T, block.position_T)
        known_R = stretches.sequence_R >= 0
        length_R = stretches.length_R
        # A stretch's positions sum to its length times its middle.
        twice_R = length_R * (2 * stretches.position_R + length_R - 1)
        sequence_R = stretches.sequence_R[known_R]
        np.add.at(self.rows_S, sequence_R, length_R[known_R])
        np.add.at(self.position_sum_S, sequence_R, twice_R[known_R] // 2)
        last = self.parts[-1] if self.parts else None
        return Part(path, last.first_row + last.stretches.rows if last else 0, stretches)
