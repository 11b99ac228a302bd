"""Rows find their requests: random engines against a simulation that knows what each one ran.

Shape suffixes: T tokens, Q requests of a step, B bytes of one token's ids, S slots, R scalars.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_probe.hooks.step_buffer import HostRows
from moe_probe.hooks.vllm.batch import NewRequest
from moe_probe.hooks.vllm.requests import EndedRequest, RequestRows
from moe_probe.recording.completeness import Completeness
from moe_probe.trace import Capture, LayerSpec, RowLayout

LAYERS = (
    LayerSpec(layer=1, num_experts=16, top_k=2, scalars=True),
    LayerSpec(layer=3, num_experts=300, top_k=1, scalars=True),
)
LAYOUT = RowLayout(LAYERS)
UNKNOWN = "nobody-00000000"


def request(name: str, prompt: list[int] | None, length: int, cached: int = 0) -> NewRequest:
    return NewRequest(name, length, cached, prompt, {})


def host_rows(
    values: Sequence[int], tokens: Sequence[int], positions: Sequence[int], silent: Sequence[bool]
) -> HostRows:
    """Rows whose every column says which value they are of."""
    value_T = np.asarray(values, np.int64)
    ids_TB = value_T[:, None] // np.array([1, 16, 64, 256]) % 16
    return HostRows(
        ids_TB.astype(np.uint8),
        (value_T[:, None] % np.array([101, 103, 107])).astype(np.float16),
        (value_T[:, None] % np.array([11, 13, 17, 19, 23, 29])).astype(np.float16),
        np.asarray(tokens, np.int32),
        np.asarray(positions, np.int64),
        np.asarray(silent, bool),
    )


@dataclass
class _Request:
    """What a request is and, by position, the last row that was run for it."""

    name: str
    prompt: list[int]
    cached: int
    has_text: bool
    at: int = 0
    rows: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    is_broken: bool = False


class _Simulation:
    """An engine that schedules as it likes, and the books a careful reader would keep."""

    def __init__(self, data: st.DataObject) -> None:
        self.draw = data.draw
        self.totals = Completeness()
        self.rows = RequestRows(LAYOUT, Capture.WEIGHTS, self.totals)
        self.open: dict[str, _Request] = {}
        self.num_run = self.num_silent = self.num_recorded = self.num_never_run = 0
        self._value = self._names = self._passes = 0

    def admit(self) -> None:
        self._names += 1
        prompt = self.draw(st.lists(st.integers(0, 9), min_size=1, max_size=40))
        cached = self.draw(st.sampled_from([0, 0, len(prompt) // 2]))
        new = _Request(f"r-{self._names:08d}", prompt, cached, self.draw(st.booleans()), cached)
        self.open[new.name] = new
        prompt_or_none = prompt if new.has_text else None
        self.rows.admit(request(new.name, prompt_or_none, len(prompt), cached))

    def step(self) -> None:
        names = self.draw(st.lists(st.sampled_from([*self.open, UNKNOWN]), min_size=1, unique=True))
        self._passes += 1
        silent = self.draw(st.sampled_from([(False, False)] * 9 + [(False, True)]))
        is_dropped = self.draw(st.sampled_from([False] * 9 + [True]))
        counts, values, tokens, positions = [], [], [], []
        for name in names:
            new = self.open.get(name) or _Request(UNKNOWN, [], 0, False)
            counts.append(self.draw(st.integers(1, 20)))
            # Drafts that were rejected, or all of it, after a preemption.
            back = st.sampled_from([new.at] * 7 + [max(new.at - 2, new.cached), 0, new.cached])
            start = self.draw(back)
            new.at = start + counts[-1]
            for position in range(start, new.at):
                self._value += 1
                values.append(self._value)
                tokens.append(self._token(new, position))
                positions.append(position)
            if not is_dropped and name in self.open:
                self._note(new, start, counts[-1], values, tokens, any(silent))
        if not is_dropped:
            rows = host_rows(values, tokens, positions, silent)
            self.rows.add(names, np.asarray(counts), rows, self._passes)
            num_known = sum(n for n, name in zip(counts, names, strict=True) if name in self.open)
            self.num_run += num_known
            self.num_silent += num_known * silent[1]

    def _token(self, new: _Request, position: int) -> int:
        is_wrong = new.prompt and self.draw(st.sampled_from([False] * 400 + [True]))
        is_prompt = position < len(new.prompt)
        return (new.prompt[position] if is_prompt else position % 7) + 50 * bool(is_wrong)

    def _note(
        self,
        new: _Request,
        start: int,
        count: int,
        values: list[int],
        tokens: list[int],
        is_silent: bool,
    ) -> None:
        end = max(new.rows, default=new.cached - 1) + 1
        new.is_broken |= is_silent or start > end
        new.rows = {at: row for at, row in new.rows.items() if at < start}
        run = zip(values[-count:], tokens[-count:], strict=True)
        new.rows |= {start + n: (*row, self._passes) for n, row in enumerate(run)}

    def end(self, name: str) -> None:
        new = self.open.pop(name)
        end = max(new.rows, default=new.cached - 1) + 1
        length = self.draw(st.sampled_from([None, new.at, new.at, max(new.at - 1, 0), new.at + 1]))
        ended = self.rows.end(name, length)
        length = end if length is None else length
        first = min(new.rows, default=new.cached)
        wanted = range(first, length)
        run = [new.rows[at] for at in wanted if at in new.rows]
        prompt = [
            token for (_, token, _), _ in zip(run, range(len(new.prompt) - first), strict=False)
        ]
        is_right = not new.has_text or prompt == new.prompt[first:length]
        if run and len(run) == len(wanted) and is_right and not new.is_broken:
            assert ended is not None
            self._check(ended, new, run, first)
            self.num_recorded += len(run)
        else:
            assert ended is None
            self.num_never_run += len(wanted) - len(run)

    def _check(
        self, ended: EndedRequest, new: _Request, run: list[tuple[int, int, int]], first: int
    ) -> None:
        values, tokens, passes = zip(*run, strict=True)
        split = max(len(new.prompt) - first, 0)
        expected = host_rows(values, tokens, range(len(run)), (False, False))
        np.testing.assert_array_equal(ended.decisions.ids_TB, expected.ids_TB)
        np.testing.assert_array_equal(ended.decisions.weights_TS, expected.weights_TS)
        np.testing.assert_array_equal(ended.decisions.scalars_TR, expected.scalars_TR)
        assert ended.decisions.forward_pass_T is not None
        assert ended.decisions.forward_pass_T.tolist() == list(passes)
        cached = new.prompt[:first] if new.has_text else [-1] * first
        assert ended.tokens_T.tolist() == [*cached, *tokens[:split]]
        assert ended.generated_T.tolist() == list(tokens[split:])
        assert ended.request.num_cached == first


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_every_row_is_recorded_or_accounted_for(data: st.DataObject) -> None:
    engine = _Simulation(data)
    for _ in range(data.draw(st.integers(1, 25))):
        action = data.draw(st.sampled_from(["admit", "step", "step", "step", "step", "end"]))
        if action == "admit" or not engine.open:
            engine.admit()
        elif action == "step":
            engine.step()
        else:
            engine.end(data.draw(st.sampled_from(sorted(engine.open))))
        assert engine.rows.names == list(engine.open)
        assert len(engine.rows) == len(engine.open)
    for name in list(engine.open):
        engine.end(name)
    totals = engine.totals
    assert totals.computed_tokens == engine.num_run
    assert totals.missing_tokens >= engine.num_never_run
    # Nothing that ran is unexplained, and what is explained beside it never ran.
    assert (
        totals.computed_tokens + totals.missing_tokens
        == engine.num_recorded + totals.superseded_tokens + totals.lost_tokens
    )
    assert totals.layers.get("1", 0) == engine.num_run
    assert totals.layers.get("3", 0) == engine.num_run - engine.num_silent
    assert engine.rows.silent_tokens == {1: 0, 3: engine.num_silent}


def _run(rows: RequestRows, name: str, start: int, tokens: Sequence[int], **options: Any) -> None:
    positions = range(start, start + len(tokens))
    silent = options.get("silent", (False, False))
    step = host_rows(list(positions), tokens, positions, silent)
    rows.add([name], np.array([len(tokens)]), step, 0)


def test_rows_of_another_request_are_lost_not_recorded() -> None:
    totals = Completeness()
    rows = RequestRows(LAYOUT, Capture.IDS, totals)
    for name in ("a", "b"):
        rows.admit(request(name, [1, 2, 3, 4], 4))
        _run(rows, name, 0, [1, 2, 3, 4, 5] if name == "a" else [1, 2, 9, 4, 5])
    assert rows.end("b", 5) is None
    ended = rows.end("a", 5)
    assert ended is not None
    assert ended.generated_T.tolist() == [5]
    assert ended.decisions.weights_TS is None
    assert (totals.lost_tokens, totals.superseded_tokens, totals.missing_tokens) == (5, 0, 0)
    assert rows.end("a", 5) is None


@pytest.mark.parametrize(
    ("length", "superseded", "lost", "missing"),
    [(5, 2, 0, 0), (7, 0, 0, 0), (8, 0, 8, 1), (0, 7, 0, 0), (None, 0, 0, 0)],
)
def test_what_ran_beyond_the_end_is_no_part_of_it(
    length: int | None, superseded: int, lost: int, missing: int
) -> None:
    totals = Completeness()
    rows = RequestRows(LAYOUT, Capture.IDS, totals)
    rows.admit(request("a", [1, 2, 3], 3))
    _run(rows, "a", 0, [1, 2, 3, 4, 5, 6, 7])
    ended = rows.end("a", length)
    found = (totals.superseded_tokens, totals.lost_tokens, totals.missing_tokens)
    assert found == (superseded, lost, missing)
    assert (ended is None) == (lost > 0 or length == 0)
    assert totals.shortfall == lost


def test_a_silent_layer_takes_the_requests_of_its_step_only() -> None:
    totals = Completeness()
    rows = RequestRows(LAYOUT, Capture.IDS, totals)
    for name in ("a", "b"):
        rows.admit(request(name, [1, 2, 3], 3))
    _run(rows, "a", 0, [1, 2, 3])
    _run(rows, "b", 0, [1, 2, 3], silent=(False, True))
    assert rows.end("b", 3) is None
    assert rows.end("a", 3) is not None
    assert rows.silent_tokens == {1: 0, 3: 3}
    assert (totals.lost_tokens, totals.shortfall) == (3, 3)
    assert totals.layers == {"1": 6, "3": 3}


def test_a_prompt_that_was_cached_and_run_after_all_has_all_its_rows() -> None:
    rows = RequestRows(LAYOUT, Capture.IDS, Completeness())
    rows.admit(request("a", [1, 2, 3, 4], 4, cached=2))
    _run(rows, "a", 2, [3, 4, 5])
    _run(rows, "a", 0, [1, 2, 3, 4, 5])
    ended = rows.end("a", 5)
    assert ended is not None
    assert (ended.request.num_cached, len(ended.decisions.ids_TB)) == (0, 5)
