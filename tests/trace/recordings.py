"""Small traces of random prompts, and naive counting to compare with.

Shape suffixes: T tokens, K slots, S slots of all layers.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from moe_probe.trace import SEGMENTS, LayerSpec, Sequence, Trace, TraceWriter
from moe_probe.trace.output import SEQUENCES_PER_RANK

LAYERS = [
    LayerSpec(layer=1, num_experts=8, top_k=2),
    LayerSpec(layer=2, num_experts=256, top_k=3),
    LayerSpec(layer=5, num_experts=300, top_k=4, scalars=True),
    LayerSpec(layer=7, num_experts=255, top_k=2, empty_slots=True, scalars=True),
]


@dataclass
class Prompt:
    """A sequence with everything the model decided for it, the tokens it shares included."""

    sequence: Sequence
    ids: list[np.ndarray]
    """Per layer, expert ids int64 [num_tokens, K], -1 for an empty slot."""
    weights: list[np.ndarray]
    """Per layer, float16 [num_tokens, K]."""


@dataclass
class Recording:
    """A trace and the prompts that were written to it."""

    path: Path
    layers: list[LayerSpec]
    prompts: list[Prompt] = field(default_factory=list)

    def selections(self) -> Iterator[tuple[Sequence, int, int, int, int, float]]:
        """Yield sequence, layer, position, slot, expert and weight, one by one."""
        for prompt in self.prompts:
            for spec, ids_TK, weights_TK in zip(
                self.layers, prompt.ids, prompt.weights, strict=True
            ):
                for (position, slot), expert in np.ndenumerate(ids_TK):
                    if expert >= 0 and position >= prompt.sequence.cached_tokens:
                        weight = float(weights_TK[position, slot])
                        yield prompt.sequence, spec.layer, position, slot, int(expert), weight

    def naive_counts(self) -> dict[tuple[Any, ...], tuple[int, int, float]]:
        """Count, unique count and weight sum by (layer, expert, task, subject, area, segment)."""
        count: Counter[tuple[Any, ...]] = Counter()
        unique: Counter[tuple[Any, ...]] = Counter()
        weights: dict[tuple[Any, ...], float] = defaultdict(float)
        for sequence, layer, position, _, expert, weight in self.selections():
            number = sum(position >= end for end in sequence.bounds[:-1])
            stratum = (sequence.task, sequence.subject, sequence.area, SEGMENTS[number])
            key = (layer, expert, *stratum)
            count[key] += sequence.multiplicity
            unique[key] += 0 <= sequence.new_from <= position
            weights[key] += weight * sequence.multiplicity
        keys = [key for key in count if count[key] or unique[key]]
        return {key: (count[key], unique[key], weights[key]) for key in keys}


def table_counts(trace: Trace) -> dict[tuple[Any, ...], tuple[int, int, float]]:
    """The same from a trace's counts tables, its parts summed."""
    sums: dict[tuple[Any, ...], tuple[int, int, float]] = {}
    for *key, count, unique, weight in zip(*trace.counts.to_pydict().values(), strict=True):
        old = sums.get(tuple(key), (0, 0, 0.0))
        sums[tuple(key)] = (old[0] + count, old[1] + unique, old[2] + (weight or 0.0))
    return sums


def stored_rows(trace: Trace) -> dict[tuple[int, int], tuple[Any, ...]]:
    """Every stored row by (sequence_id, position): token id, then ids per layer; none twice."""
    rows: dict[tuple[int, int], tuple[Any, ...]] = {}
    for block in trace.scan():
        layers = [block.topk_ids(layer).tolist() for layer in trace.layers]
        for row in zip(
            block.sequence_id_T, block.position_T, block.token_id_T, *layers, strict=True
        ):
            key = (int(row[0]), int(row[1]))
            assert key not in rows
            rows[key] = (int(row[2]), *row[3:])
    return rows


def random_ids(rng: np.random.Generator, spec: LayerSpec, tokens: int) -> np.ndarray:
    """Distinct experts for each token, int64 [tokens, K]; some slots empty where that can be."""
    ids_TK = np.argsort(rng.random((tokens, spec.num_experts)), axis=1)[:, : spec.top_k]
    if spec.empty_slots:
        ids_TK[rng.random(ids_TK.shape) < 0.3] = -1
    return ids_TK


def record(
    path: Path,
    seed: int,
    *,
    num_prompts: int = 30,
    capture: str = "ids",
    share: bool = True,
    cache: bool = False,
    layers: list[LayerSpec] | None = None,
    **options: Any,
) -> Recording:
    """Write random prompts; later ones share leading tokens with earlier ones, in chains.

    With `cache`, an engine has the leading tokens of some of those that share with none.
    """
    rng = np.random.default_rng(seed)
    recording = Recording(path, layers or LAYERS)
    options = {"segment_tokens": 40, **options}
    with TraceWriter(path, layers=recording.layers, capture=capture, **options) as writer:
        for _ in range(num_prompts):
            prompt = _prompt(rng, recording, writer.next_sequence_id(), writer.rank)
            recording.prompts.append(prompt)
            if cache and prompt.sequence.prefix_id < 0 and rng.random() < 0.5:
                cached = int(rng.integers(0, prompt.sequence.num_tokens + 1))
                prompt.sequence.cached_tokens = prompt.sequence.prefix_tokens = cached
            write(writer, prompt, share=share)
    return recording


def write(writer: TraceWriter, prompt: Prompt, *, share: bool = True) -> None:
    """Write a prompt, without the tokens it shares, or whole and without saying that it shares."""
    sequence = prompt.sequence
    if not share and sequence.multiplicity:
        sequence.prefix_id, sequence.prefix_tokens = -1, sequence.cached_tokens
    shared = sequence.prefix_tokens
    writer.write(
        sequence,
        writer.layout.pack([ids_TK[shared:] for ids_TK in prompt.ids]),
        token_id_T=np.arange(shared, sequence.num_tokens) + 1000,
        weights_TS=np.concatenate([weights_TK[shared:] for weights_TK in prompt.weights], axis=1),
        scalars_TR=router_scalars(sequence)[shared:],
        forward_pass_T=forward_passes(sequence)[shared:],
    )


def router_scalars(sequence: Sequence) -> np.ndarray:
    """What `write` gives for the layers of LAYERS that have scalars: float16 [num_tokens, 6]."""
    rng = np.random.default_rng(sequence.sequence_id)
    return rng.normal(size=(sequence.num_tokens, 6)).astype(np.float16)


def forward_passes(sequence: Sequence) -> np.ndarray:
    """What `write` gives: four tokens a pass, int64 [num_tokens]; of every fifth it is unknown."""
    number = sequence.sequence_id % SEQUENCES_PER_RANK
    if number % 5 == 4:
        return np.full(sequence.num_tokens, -1)
    return 3 * number + np.arange(sequence.num_tokens) // 4


def stored_passes(trace: Trace) -> dict[tuple[int, int], int]:
    """The forward pass of every stored row by (sequence_id, position)."""
    passes: dict[tuple[int, int], int] = {}
    for path in trace.routing_parts:
        block = trace.read_identity(path, forward_passes=True)
        assert block.forward_pass_T.dtype == np.int32
        keys = zip(block.sequence_id_T.tolist(), block.position_T.tolist(), strict=True)
        passes.update(zip(keys, block.forward_pass_T.tolist(), strict=True))
    return passes


def _prompt(rng: np.random.Generator, recording: Recording, sequence_id: int, rank: int) -> Prompt:
    tokens = int(rng.integers(1, 20))
    subject = f"subject {rng.integers(3)}"
    owner = _owner(rng, recording.prompts)
    shared = 0
    if owner is not None:
        # A stored row counts under its owner's stretch, so both must agree about shared tokens.
        subject = owner.sequence.subject
        shared = int(rng.integers(1, owner.sequence.num_tokens + 1))
        tokens = max(tokens, shared)
    multiplicity = int(rng.choice([1, 1, 1, 2]))
    if owner is not None and rng.random() < 0.3:
        tokens = shared
        multiplicity = int(rng.integers(0, 3))
    ids = [random_ids(rng, spec, tokens) for spec in recording.layers]
    weights = [rng.random(ids_TK.shape).astype(np.float16) for ids_TK in ids]
    ends = sorted(rng.integers(0, tokens + 1, 4).tolist())
    if owner is not None:
        for old, new in zip(owner.ids + owner.weights, ids + weights, strict=True):
            new[:shared] = old[:shared]
        old_ends = owner.sequence.bounds[:-1]
        ends = [
            max(end, shared) if old >= shared else old
            for old, end in zip(old_ends, ends, strict=True)
        ]
    sequence = Sequence(
        sequence_id=sequence_id,
        num_tokens=tokens,
        task="mmlu",
        subject=subject,
        area=f"area of {subject}",
        doc_id=sequence_id,
        prefix_end=ends[0],
        question_end=ends[1],
        cue_end=ends[2],
        choice_end=ends[3],
        multiplicity=multiplicity,
        new_from=int(rng.integers(shared, tokens + 1)) if rng.random() < 0.8 else -1,
        prefix_id=-1 if owner is None else owner.sequence.sequence_id,
        prefix_tokens=shared,
        rank=rank,
    )
    return Prompt(sequence, ids, weights)


def _owner(rng: np.random.Generator, prompts: list[Prompt]) -> Prompt | None:
    prompts = [prompt for prompt in prompts if not prompt.sequence.cached_tokens]
    if not prompts or rng.random() < 0.4:
        return None
    return prompts[int(rng.integers(len(prompts)))]
