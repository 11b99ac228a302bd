"""Random traces of documents, and the same tokens as plain lists for naive loops.

Shape suffixes: K slots.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moe_probe.trace import LayerSpec, Trace, TraceWriter, open_trace
from moe_probe.trace.schema import Sequence

LAYERS = (
    LayerSpec(layer=1, num_experts=6, top_k=2),
    LayerSpec(layer=3, num_experts=300, top_k=3),
    LayerSpec(layer=4, num_experts=5, top_k=1),
    LayerSpec(layer=7, num_experts=7, top_k=3, empty_slots=True),
)
NEVER = 2
"""An expert of every layer that nothing selects."""


@dataclass(frozen=True)
class Token:
    """One counted token: what it belongs to, and per layer the experts it selects."""

    subject: str
    document: tuple[int, int]
    """(0, 0) for the shared prefix of the subject, else (1, number)."""
    sequence: int
    position: int
    token_id: int
    experts: dict[int, list[int]]
    """In slot order, empty slots left out."""


def make_stream(
    path: Path,
    seed: int,
    *,
    documents: int = 14,
    prefix: int = 3,
    layers: tuple[LayerSpec, ...] = LAYERS,
) -> tuple[Trace, list[Token]]:
    """Write documents of two subjects in mixed order; some are asked by two sequences.

    Every row is of a new context, so the rule `unique` counts each once, in the order returned.
    """
    rng = np.random.default_rng(seed)
    tokens: list[Token] = []
    owners: dict[str, int] = {}
    run = {"slot_order": "router_rank"}
    with TraceWriter(path, layers=list(layers), run=run, segment_tokens=64) as writer:
        for number in rng.permutation(documents).tolist():
            subject = "law" if number % 3 else "anatomy"
            length = int(rng.integers(0, 9)) + 1
            for again in range(1 + number % 2):
                owner = owners.get(subject, -1)
                begin = 0 if owner < 0 else prefix
                stop = prefix + length + 2 * again
                if again:
                    owner, begin = writer.next_sequence_id() - 1, prefix + length
                sequence = Sequence(
                    sequence_id=writer.next_sequence_id(),
                    num_tokens=stop,
                    task="t",
                    subject=subject,
                    doc_id=number,
                    prefix_end=prefix,
                    question_end=prefix + length,
                    prefix_id=owner,
                    prefix_tokens=begin,
                    new_from=begin,
                )
                owners.setdefault(subject, sequence.sequence_id)
                mine = _tokens(rng, sequence, layers)
                tokens += mine
                token_ids = np.array([token.token_id for token in mine], np.int32)
                writer.write(sequence, _rows(writer, mine, layers), token_id_T=token_ids)
    return open_trace(path), tokens


def _tokens(
    rng: np.random.Generator, sequence: Sequence, layers: tuple[LayerSpec, ...]
) -> list[Token]:
    found = []
    for position in range(sequence.prefix_tokens, sequence.num_tokens):
        experts = {}
        for spec in layers:
            chance = rng.random(spec.num_experts) ** (1 + np.arange(spec.num_experts) % 5)
            chance[NEVER] = -1
            size = int(rng.integers(0, spec.top_k + 1)) if spec.empty_slots else spec.top_k
            experts[spec.layer] = np.argsort(-chance)[:size].tolist()
        is_prefix = position < sequence.prefix_end
        document = (0, 0) if is_prefix else (1, sequence.doc_id)
        facts = (sequence.subject, document, sequence.sequence_id, position)
        found.append(Token(*facts, int(rng.integers(0, 4)), experts))
    return found


def _rows(
    writer: TraceWriter, tokens: list[Token], layers: tuple[LayerSpec, ...]
) -> np.ndarray | None:
    if not tokens:
        return None
    padded = [
        np.array([(t.experts[s.layer] + [-1] * s.top_k)[: s.top_k] for t in tokens]) for s in layers
    ]
    return writer.layout.pack(padded)


def canonical(tokens: list[Token]) -> list[Token]:
    """Sort by subject, prefix before documents, document, and as recorded inside."""
    return sorted(tokens, key=lambda token: (token.subject, token.document))
