"""Random requests to a causal model, recorded at once or by the stages of a pipeline.

Shape suffixes: T tokens, K slots, B bytes of one token's ids, S slots and R router scalars.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from moe_probe.recording.recorder import Recorder
from moe_probe.recording.rows import Bounds, Decisions, Request, Row
from moe_probe.recording.stage_facts import raw_capture, stage_facts
from moe_probe.trace import Capture, LayerSpec, RowLayout, Trace, TraceWriter
from tests.trace.recordings import LAYERS, random_ids, stored_passes

_SPECS = {spec.layer: spec for spec in LAYERS}
KINDS = ("loglikelihood", "generate_until", "served")


@dataclass(frozen=True)
class Asked:
    """One request and how it was answered."""

    number: int
    prompt: tuple[int, ...]
    generated: tuple[int, ...]
    bounds: tuple[int, int, int, int]
    kind: str = "loglikelihood"
    doc_id: int = 0
    subject: str = "s"
    cached: int = 0
    is_private: bool = False
    is_answered: bool = True
    first_pass: int = 0

    @property
    def num_run(self) -> int:
        return len(self.prompt) + len(self.generated) - self.cached

    def row(self, *, internal: bool) -> Row:
        """The row, named as the engine names it, or as its client does."""
        request = Request(
            "t", self.subject, "area", self.doc_id, self.kind, 0, answer_key=self.number
        )
        return Row(
            tokens_T=np.array(self.prompt, np.int32),
            bounds=Bounds(*self.bounds),
            truncated=self.number % 3,
            requests=[request],
            request_id=f"cmpl-{self.number}" + (f"-{self.number:08x}" if internal else ""),
            cached=self.cached,
            is_private=self.is_private,
        )

    def decisions(self, layers: list[LayerSpec]) -> Decisions:
        """What the layers decide, each token by all tokens up to it."""
        tokens_T = np.array(self.prompt + self.generated, np.int32)
        ends = range(self.cached + 1, len(tokens_T) + 1)
        rows = [_decide(tokens_T[:end], layers) for end in ends]
        ids_TB, weights_TS, scalars_TR = map(np.concatenate, zip(*rows, strict=True))
        return Decisions(ids_TB, weights_TS, scalars_TR, self.passes_T)

    @property
    def passes_T(self) -> np.ndarray:
        """Forward passes of the tokens that were run, five of the prompt in each."""
        own_T = np.arange(self.num_run)
        decoded_T = own_T - (len(self.prompt) - self.cached)
        passes_T = np.where(decoded_T < 0, own_T // 5, 3 + decoded_T)
        return self.first_pass + 10 * self.number + passes_T


def _decide(context_T: np.ndarray, layers: list[LayerSpec]) -> list[np.ndarray]:
    context = crc32(context_T.tobytes())
    every = [_decide_in(spec.layer, context) for spec in layers]
    return [np.concatenate(part, axis=1) for part in zip(*every, strict=True)]


@cache
def _decide_in(layer: int, context: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng, spec = np.random.default_rng([layer, context]), _SPECS[layer]
    ids_TB = RowLayout((spec,)).pack([random_ids(rng, spec, 1)])
    weights_TS = rng.random((1, spec.top_k)).astype(np.float16)
    scalars_TR = rng.random((1, 3 * spec.scalars)).astype(np.float16)
    return ids_TB, weights_TS, scalars_TR


def moved(trace: Trace, asked: Iterable[Asked]) -> list[Asked]:
    """The requests as they are numbered in a trace that goes on after those it has."""
    first_pass = 1 + max(stored_passes(trace).values(), default=-1)
    return [replace(each, first_pass=first_pass) for each in asked]


def passes_asked(trace: Trace, asked: Iterable[Asked]) -> dict[tuple[int, int], int]:
    """The forward pass of each stored row, by the request it belongs to."""
    by_name = {f"cmpl-{each.number}": each for each in asked}
    rows = trace.sequences.select(["sequence_id", "request_id"]).to_pylist()
    owners = {row["sequence_id"]: by_name[row["request_id"]] for row in rows}
    return {
        (owner, position): int(owners[owner].passes_T[position - owners[owner].cached])
        for owner, position in stored_passes(trace)
    }


def random_asked(rng: np.random.Generator, count: int) -> list[Asked]:
    """Requests of few different tokens, so that many begin alike."""
    return [_random(rng, number) for number in range(count)]


def _random(rng: np.random.Generator, number: int) -> Asked:
    length = int(rng.integers(1, 12))
    subject, doc_id = int(rng.integers(2)), int(rng.integers(6))
    # Documents of a subject begin alike, and requests of a document still more.
    prefix = np.random.default_rng(subject).integers(0, 5, 3)
    question = np.random.default_rng([subject, doc_id]).integers(0, 5, 4)
    prompt = [*prefix.tolist(), *question.tolist(), *rng.integers(0, 3, length).tolist()][:length]
    kind = KINDS[int(rng.integers(3))]
    generated = rng.integers(0, 5, int(rng.integers(0, 5))).tolist()
    ends = (min(3, length), min(7, length), int(rng.integers(min(7, length), length + 1)), length)
    return Asked(
        number=number,
        prompt=tuple(prompt),
        generated=tuple(generated if kind != "loglikelihood" else ()),
        bounds=ends,
        kind=kind,
        doc_id=doc_id,
        subject=f"subject {subject}",
        cached=int(rng.integers(0, length)) if rng.random() < 0.2 else 0,
        is_private=kind == "served" and rng.random() < 0.5,
        is_answered=rng.random() < 0.8,
    )


def record_at_once(
    path: Path, asked: Iterable[Asked], *, capture: Capture = Capture.IDS, sample_every: int = 1
) -> Recorder:
    """Record all layers in one process."""
    with TraceWriter(path, layers=LAYERS, capture=capture) as writer:
        recorder = Recorder(writer, sample_every=sample_every)
        _record(recorder, asked, LAYERS, internal=False)
    return recorder


def record_stage(
    root: Path,
    stage: int,
    layers: list[LayerSpec],
    asked: Iterable[Asked],
    *,
    capture: Capture = Capture.IDS,
    sample_every: int = 1,
    segment_tokens: int = 100,
    is_killed: bool = False,
    facts: Mapping[str, Any] | None = None,
    **options: Any,
) -> Recorder:
    """Record some of the layers, as a stage of a pipeline does that ends, or is killed."""
    own = stage_facts(
        capture,
        sample_every=sample_every,
        is_evaluation=options.pop("is_evaluation", False),
        replaces=options.pop("replaces", False),
    )
    writer = TraceWriter(
        root / "stages" / str(stage),
        layers=layers,
        capture=raw_capture(capture),
        run={"model": "m", "device": f"device {stage}", "stage": own, **(facts or {})},
        segment_tokens=segment_tokens,
        **options,
    )
    recorder = Recorder(writer, sample_every=sample_every, is_raw=True)
    _record(recorder, asked, layers, internal=True)
    if is_killed:
        writer._closing.close()  # As its death would: the lock goes, the staging stays.
    else:
        writer.close(facts={"completeness": recorder.totals.to_json()})
    return recorder


def _record(
    recorder: Recorder, asked: Iterable[Asked], layers: list[LayerSpec], *, internal: bool
) -> None:
    totals = recorder.totals
    for each in asked:
        if each.is_answered and each.kind == "loglikelihood":
            recorder.answer(each.number, {"loglik": -float(each.number), "is_greedy": True})
        if each.is_answered and each.kind == "generate_until":
            recorder.answer(each.number, {"response": f"answer {each.number}"})
        recorder.expect(len(each.prompt) - each.cached)
        totals.computed_tokens += each.num_run
        for spec in layers:
            layer = str(spec.layer)
            totals.layers[layer] = totals.layers.get(layer, 0) + each.num_run
        generated_T = np.array(each.generated, np.int32)
        decisions, row = each.decisions(layers), each.row(internal=internal)
        recorder.record(row, decisions, generated_T=generated_T)
