"""Pairs of small traces of the same prompts, and what a loop over single tokens says of them.

The first trace shares leading tokens and ran everything in order; the second ran the prompts in
another order, stored some beginnings again, and routed some tokens otherwise.

Shape suffixes: T tokens, K slots.
"""

from __future__ import annotations

from collections.abc import Sequence as Several
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moe_probe.trace import LayerSpec, Trace, TraceWriter, open_trace
from moe_probe.trace.schema import Sequence

LAYERS = [
    LayerSpec(layer=1, num_experts=8, top_k=2, scalars=True),
    LayerSpec(layer=3, num_experts=256, top_k=4, scalars=True),
    LayerSpec(layer=4, num_experts=300, top_k=1, empty_slots=True),
]
Context = tuple[int, ...]


@dataclass(frozen=True)
class Prompt:
    """What one sequence ran."""

    tokens: Context
    ends: tuple[int, int, int, int]
    subject: str
    document: int
    multiplicity: int = 1

    @property
    def all_ends(self) -> list[int]:
        return [*self.ends, len(self.tokens)]


def make_prompts(seed: int, number: int = 20) -> list[Prompt]:
    """Few-shot prompts of two subjects; some continue in several ways, some come twice."""
    rng = np.random.default_rng(seed)
    prompts = []
    for document in range(number):
        subject = int(rng.integers(2))
        prefix = [7, 100 + subject, 3, 5][: 2 + int(rng.integers(3))]
        question = rng.integers(0, 3, int(rng.integers(1, 9))).tolist()
        cue = [50, 51]
        for choice in range(int(rng.integers(1, 4))):
            tail = [60 + choice] * int(rng.integers(0, 2))
            generated = rng.integers(0, 2, int(rng.integers(0, 3))).tolist()
            lengths = np.cumsum([len(part) for part in (prefix, question, cue, tail)]).tolist()
            tokens = (*prefix, *question, *cue, *tail, *generated)
            ends = (lengths[0], lengths[1], lengths[2], lengths[3])
            times = int(rng.integers(1, 3))
            prompts.append(Prompt(tokens, ends, "ab"[subject], document, times))
    return prompts


def route(spec: LayerSpec, context: Context, *, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """Choose experts in order of weight, from the context; with noise, sometimes others."""
    rng = np.random.default_rng([spec.layer, *context])
    ids_K = rng.permutation(spec.num_experts)[: spec.top_k]
    weight_K = np.sort(rng.integers(1, 64, spec.top_k))[::-1] / 64
    other = np.random.default_rng([99, spec.layer, *context])
    if other.random() < noise:
        slot = int(other.integers(spec.top_k))
        free = np.setdiff1d(np.arange(spec.num_experts), ids_K)
        ids_K[slot] = other.choice(free)
    if other.random() < noise:
        ids_K = ids_K[::-1].copy()
    if spec.empty_slots and rng.random() < 0.2:
        ids_K[-1] = -1
    return ids_K, weight_K


def margin(spec: LayerSpec, context: Context) -> float:
    """A margin that float16 holds exactly."""
    return float(2.0 ** np.random.default_rng([5, spec.layer, *context]).integers(-6, 3))


def write(
    path: Path,
    prompts: Several[Prompt],
    *,
    noise: float,
    share: bool = True,
    token_ids: bool = True,
    capture: str = "weights",
) -> Trace:
    """Write a trace of prompts, with router scalars if with weights, in parts of 64 tokens."""
    facts = {"slot_order": "descending_weight"}
    with TraceWriter(path, layers=LAYERS, capture=capture, segment_tokens=64, run=facts) as writer:
        for number, prompt in enumerate(prompts):
            _write(writer, prompt, prompts[:number], noise, share=share, token_ids=token_ids)
    return open_trace(path)


def _write(
    writer: TraceWriter,
    prompt: Prompt,
    earlier: Several[Prompt],
    noise: float,
    *,
    share: bool,
    token_ids: bool,
) -> None:
    known = [_common(prompt, other) for other in earlier]
    mine = [n if o.subject == prompt.subject else 0 for n, o in zip(known, earlier, strict=True)]
    owner = int(np.argmax(mine)) if share and max(mine, default=0) else -1
    start = mine[owner] if owner >= 0 else 0
    contexts = [prompt.tokens[: end + 1] for end in range(start, len(prompt.tokens))]
    sequence = Sequence(
        sequence_id=writer.next_sequence_id(),
        num_tokens=len(prompt.tokens),
        task="t",
        subject=prompt.subject,
        doc_id=prompt.document,
        prefix_end=prompt.ends[0],
        question_end=prompt.ends[1],
        cue_end=prompt.ends[2],
        choice_end=prompt.ends[3],
        prefix_id=owner,
        prefix_tokens=start,
        multiplicity=prompt.multiplicity,
        new_from=max(known, default=0),
        prompt_hash=str(prompt.tokens[: prompt.ends[3]]),
    )
    if not contexts:
        writer.write(sequence, None)
        return
    routed = [[route(spec, context, noise=noise) for context in contexts] for spec in LAYERS]
    scalars = [
        np.array([[0, 0, margin(spec, context)] for context in contexts])
        for spec in LAYERS
        if spec.scalars
    ]
    writer.write(
        sequence,
        writer.layout.pack([np.array([ids for ids, _ in layer]) for layer in routed]),
        token_id_T=np.array([context[-1] for context in contexts], np.int32) if token_ids else None,
        weights_TS=np.concatenate(
            [np.array([w for _, w in layer]) for layer in routed], axis=1
        ).astype(np.float16),
        scalars_TR=np.concatenate(scalars, axis=1).astype(np.float16),
    )


def _common(prompt: Prompt, other: Prompt) -> int:
    same = [a == b for a, b in zip(prompt.tokens, other.tokens, strict=False)]
    return same.index(False) if False in same else len(same)


def aligned(first: Several[Prompt], second: Several[Prompt]) -> list[tuple[Prompt, Context]]:
    """Contexts of the first trace, each once, that begin a stretch's end that the second ran."""
    ran = {prompt.tokens[:end] for prompt in second for end in prompt.all_ends if end}
    seen: set[Context] = set()
    found = []
    for prompt in first:
        common = max((end for end in prompt.all_ends if prompt.tokens[:end] in ran), default=0)
        for position in range(len(prompt.tokens)):
            context = prompt.tokens[: position + 1]
            if context not in seen and position < common:
                found.append((prompt, context))
            seen.add(context)
    return found
