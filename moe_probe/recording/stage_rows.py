"""What several pipeline stages recorded of each request, put together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from moe_probe.recording.rows import Decisions
from moe_probe.recording.stage_trace import Key, StageRows, StageSequence, num_run
from moe_probe.trace import RowLayout, Trace
from moe_probe.trace.output import last_forward_pass

_OUTCOMES = ("choice_logliks", "choice_is_greedy", "response", "correct")
# When an engine is ended amid a request, its first stages may have run more tokens than the last.
_BY_LENGTH = ("num_tokens", "question_end", "cue_end", "choice_end", "prefix_end", "prompt_hash")


@dataclass
class Lost:
    """Tokens of requests that some stage lacks, or has otherwise than the others."""

    tokens: int = 0
    by_stage: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    """Those that a stage lacks."""
    cut: int = 0
    """Last tokens of aborted requests, which some stage did not run."""


class JoinedRows:
    """The sequences of all stages, every layer of each, in the order of the first stage.

    Ranks become one, so forward passes of each are numbered after those of the rank before.

    Args:
        stages: By number.
        layout: All layers in model order.

    Raises:
        TraceError: as `StageRows`, and while iterating for a part that is damaged.
    """

    def __init__(self, stages: dict[int, Trace], layout: RowLayout) -> None:
        self._stages = {number: StageRows(trace) for number, trace in stages.items()}
        self.lost = Lost()
        self.longest = max(stage.longest for stage in self._stages.values())
        layers = [layer for trace in stages.values() for layer in trace.layers]
        order = [layers.index(spec.layer) for spec in layout.layers]
        recorded = RowLayout(tuple(layout.layers[order.index(i)] for i in range(len(layers))))
        offsets = (recorded.id_offsets, recorded.slot_offsets, recorded.scalar_offsets)
        self._moves = [_moves(order, each) for each in offsets]
        self._passes_before = _passes_before(next(iter(stages.values())))

    def join(self, first_pass: int) -> Iterator[StageSequence]:
        """Yield them, their forward passes numbered from `first_pass` on; once only."""
        first, *_ = self._stages
        for key in self._stages[first]:
            found = {number: stage.take(key) for number, stage in self._stages.items()}
            known = {number: each for number, each in found.items() if each is not None}
            runs = {number: num_run(each.facts) for number, each in known.items()}
            every = _cut(list(known.values()))
            if len(known) == len(found) and _agree(every):
                self.lost.cut += max(runs.values()) - num_run(every[0].facts)
                yield self._join(every, first_pass)
            else:
                self._lose(key, runs)
        self._lose_untaken()

    def _join(self, every: list[StageSequence], first_pass: int) -> StageSequence:
        # A step's tokens pass all stages, so the first one's numbers hold for all.
        *parts, (passes_T, *_) = zip(*(each.decisions for each in every), strict=True)
        joined = [
            None if part[0] is None else move(np.concatenate(part, axis=1))
            for part, move in zip(parts, self._moves, strict=True)
        ]
        facts = dict(every[0].facts)
        first_pass += self._passes_before[facts["rank"]]
        joined.append(np.where(passes_T < 0, -1, first_pass + passes_T.astype(np.int64)))
        for name in _OUTCOMES:
            values = (each.facts[name] for each in every)
            facts[name] = next((value for value in values if value is not None), None)
        return StageSequence(facts, every[0].token_id_T, Decisions._make(joined))

    def _lose_untaken(self) -> None:
        untaken: dict[Key, dict[int, int]] = defaultdict(dict)
        for number, stage in self._stages.items():
            for key, tokens in stage.untaken().items():
                untaken[key][number] = tokens
        for key, known in untaken.items():
            self._lose(key, known)

    def _lose(self, key: Key, known: dict[int, int]) -> None:
        tokens = max(known.values())
        self.lost.tokens += tokens
        for number in self._stages.keys() - known.keys():
            self.lost.by_stage[number] += tokens


def _passes_before(trace: Trace) -> dict[int, int]:
    """How many forward passes the ranks before each rank have."""
    before, total = {}, 0
    for rank in sorted(set(trace.sequences["rank"].to_pylist())):
        before[rank] = total
        total += last_forward_pass(trace.files, rank) + 1
    return before


def _cut(every: list[StageSequence]) -> list[StageSequence]:
    """Leave out the tokens that not all stages ran."""
    shortest = min((each.facts for each in every), key=num_run)
    same, length = {name: shortest[name] for name in _BY_LENGTH}, num_run(shortest)
    return [
        each
        if num_run(each.facts) == length
        else StageSequence(
            {**each.facts, **same}, each.token_id_T[:length], each.decisions.until(length)
        )
        for each in every
    ]


def _agree(every: list[StageSequence]) -> bool:
    """Whether the stages tell of the same request, rows and all."""
    first = every[0]
    shared = first.facts.keys() - {"sequence_id", *_OUTCOMES}
    return all(
        each.facts["rows_kept"]
        and all(each.facts[name] == first.facts[name] for name in shared)
        and np.array_equal(each.token_id_T, first.token_id_T)
        for each in every
    )


def _moves(order: list[int], offsets: list[int]) -> Callable[[np.ndarray], np.ndarray]:
    """Return what brings the columns of layers into an order."""
    spans = [np.arange(*offsets[index : index + 2]) for index in order]
    columns = np.concatenate(spans)
    if (np.diff(columns) == 1).all():
        return lambda values: values
    return lambda values: values[:, columns]
