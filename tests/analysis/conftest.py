"""Small random traces whose counts a naive loop over contexts can tell.

Shape suffixes: T tokens, K slots.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe_probe.trace import LayerSpec, Trace, TraceWriter, open_trace
from moe_probe.trace.schema import Sequence

LAYERS = [
    LayerSpec(layer=1, num_experts=8, top_k=2),
    LayerSpec(layer=2, num_experts=5, top_k=1),
    LayerSpec(layer=5, num_experts=300, top_k=6),
    LayerSpec(layer=6, num_experts=256, top_k=3),
]
SUBJECTS = [("anatomy", "stem"), ("law", "humanities"), ("", "")]
IDLE = 3
"""An expert of every layer that nothing selects."""


@dataclass
class Run:
    """What the model ran, token by token, and the trace that was made of it."""

    trace: Trace
    prompts: list[dict[str, Any]]
    layers: list[LayerSpec] = field(default_factory=lambda: LAYERS)

    def naive(self, rule: str) -> tuple[dict[int, Counter[tuple[str, str, int]]], Counter[Any]]:
        """Count by brute force: {layer: {(subject, segment, expert)}} and {(subject, segment)}."""
        counts: dict[int, Counter[tuple[str, str, int]]] = {s.layer: Counter() for s in self.layers}
        tokens: Counter[tuple[str, str]] = Counter()
        seen: set[tuple[int, ...]] = set()
        for prompt in self.prompts:
            ends = [*prompt["ends"], len(prompt["tokens"])]
            for position in range(len(prompt["tokens"])):
                context = tuple(prompt["tokens"][: position + 1])
                names = ("prefix", "question", "cue", "choice", "generated")
                segment = next(n for n, end in zip(names, ends, strict=True) if position < end)
                times = prompt["multiplicity"] * (position >= prompt["cached"])
                if rule != "raw":
                    is_new = context not in seen and position >= prompt["cached"]
                    times = int(is_new)
                    seen.add(context)
                if rule == "question" and segment in ("prefix", "generated"):
                    times = 0
                if rule == "decision" and position != prompt["ends"][2] - 1:
                    times = 0
                tokens[prompt["subject"], segment] += times
                for spec in self.layers:
                    for expert in route(spec, context).tolist():
                        counts[spec.layer][prompt["subject"], segment, expert] += times
        return counts, tokens


def route(spec: LayerSpec, context: tuple[int, ...]) -> np.ndarray:
    """Choose experts that depend on the context and on nothing else."""
    rng = np.random.default_rng([spec.layer, *context])
    experts = [expert for expert in range(spec.num_experts) if expert != IDLE]
    return rng.choice(experts, spec.top_k, replace=False)


def make_run(path: Path, seed: int, *, capture: str = "ids", segment_tokens: int = 64) -> Run:
    """Write ragged prompts that share leading tokens, some run twice, some answered by others."""
    rng = np.random.default_rng(seed)
    prompts: list[dict[str, Any]] = []
    with TraceWriter(
        path,
        layers=LAYERS,
        capture=capture,
        segment_tokens=segment_tokens,
        run={"model": "m", "slot_order": "router_rank"},
    ) as writer:
        for number in range(24):
            prompt = _prompt(rng, number, prompts)
            prompts.append(prompt)
            _write(writer, prompt, prompts[:-1], share=capture != "counts" and number % 5 != 4)
    return Run(open_trace(path), prompts)


def _prompt(rng: np.random.Generator, number: int, earlier: list[dict[str, Any]]) -> dict[str, Any]:
    if number % 7 == 6:
        # The same prompt again: run again, or answered from the earlier run.
        again = {"multiplicity": int(rng.integers(0, 2)), "doc_id": number, "cached": 0}
        return {**earlier[-2], **again}
    subject = int(rng.integers(len(SUBJECTS)))
    prefix = [100 + subject, *range(int(subject) * 2)]
    lengths = rng.integers(0, 4, 4)
    # A token tells its stretch, so a context that two prompts share lies in the same one of both.
    segments = np.repeat(np.arange(4), lengths)
    body = (10 * segments + rng.integers(0, 2, len(segments))).tolist()
    ends = (len(prefix) + np.cumsum([0, *lengths[:3]])).tolist()
    return {
        "subject": SUBJECTS[subject][0],
        "area": SUBJECTS[subject][1],
        "tokens": [*prefix, *body],
        "ends": ends,
        "multiplicity": int(rng.integers(1, 3)),
        "doc_id": number,
        # An engine's prefix cache has some of the leading tokens.
        "cached": int(rng.integers(0, len(prefix) + len(body) + 1)) if number % 6 == 1 else 0,
    }


def _write(
    writer: TraceWriter, prompt: dict[str, Any], earlier: list[dict[str, Any]], *, share: bool
) -> None:
    tokens = prompt["tokens"]
    cached = prompt["cached"]
    common = [_common(tokens, other["tokens"]) for other in earlier]
    new_from = max(common, default=0)
    # Nobody can share with a sequence whose own leading tokens are nowhere.
    common = [0 if other["cached"] else n for other, n in zip(earlier, common, strict=True)]
    best = int(np.argmax(common)) if common else 0
    is_answered = prompt["multiplicity"] == 0
    is_shared = (share or is_answered) and not cached
    prefix_tokens = max(common, default=0) if is_shared else cached
    sequence = Sequence(
        sequence_id=writer.next_sequence_id(),
        num_tokens=len(tokens),
        task="mmlu",
        subject=prompt["subject"],
        area=prompt["area"],
        doc_id=prompt["doc_id"],
        prefix_end=prompt["ends"][0],
        question_end=prompt["ends"][1],
        cue_end=prompt["ends"][2],
        choice_end=prompt["ends"][3],
        prefix_id=best if prefix_tokens and not cached else -1,
        prefix_tokens=prefix_tokens,
        cached_tokens=cached,
        multiplicity=prompt["multiplicity"],
        new_from=new_from,
        prompt_hash=str(tokens),
    )
    contexts = [tuple(tokens[: i + 1]) for i in range(prefix_tokens, len(tokens))]
    rows = None
    if contexts:
        rows = writer.layout.pack(
            [np.array([route(spec, context) for context in contexts]) for spec in LAYERS]
        )
    writer.write(sequence, rows)


def _common(left: list[int], right: list[int]) -> int:
    same = [a == b for a, b in zip(left, right, strict=False)]
    return same.index(False) if False in same else len(same)


@pytest.fixture(params=[0, 1, 2])
def run(tmp_path: Path, request: pytest.FixtureRequest) -> Run:
    """A small random run at capture level ids, in several parts."""
    return make_run(tmp_path / "trace", request.param)


@pytest.fixture
def counts_run(tmp_path: Path) -> Run:
    """A run of which only the counts were kept."""
    return make_run(tmp_path / "trace", 0, capture="counts")


@pytest.fixture
def new_trace(tmp_path: Path) -> Callable[..., Trace]:
    """Write one trace from packed rows, without the checks of `RowLayout.pack`."""

    def write(
        layers: list[LayerSpec], sequences: list[np.ndarray], *, run: Any = None, **facts: Any
    ) -> Trace:
        capture = facts.pop("capture", "ids")
        with TraceWriter(
            tmp_path / "new", layers=layers, run=run, capture=capture, force=True
        ) as writer:
            for rows_TB in sequences:
                number = writer.next_sequence_id()
                length = facts.get("num_tokens", len(rows_TB))
                writer.write(
                    Sequence(sequence_id=number, **{**facts, "num_tokens": length}), rows_TB
                )
        return open_trace(tmp_path / "new")

    return write
