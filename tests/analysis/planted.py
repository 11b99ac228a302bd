"""Traces whose routing is known: experts of given weights, drawn anew for every token.

Shape suffixes: D documents, T tokens, N experts of a layer, K slots.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from moe_probe.trace import LayerSpec, TraceWriter


def write(
    path: Path,
    weights: Mapping[int, np.ndarray],
    subjects: Sequence[str],
    tokens_D: np.ndarray,
    *,
    top_k: int,
    seed: int,
    correct: Sequence[bool] = (),
) -> Path:
    """Write one trace of documents whose tokens draw k distinct experts independently.

    Args:
        path: Of the new trace.
        weights: Per layer, the weights [D, N] of every document; 0 is never drawn.
        subjects: Of every document.
        tokens_D: Length of every document.
        top_k: k.
        seed: Of the draws.
        correct: Whether every document was answered rightly; nothing is known if empty.
    """
    rng = np.random.default_rng(seed)
    layers = [
        LayerSpec(layer=layer, num_experts=weight_DN.shape[1], top_k=top_k)
        for layer, weight_DN in weights.items()
    ]
    with TraceWriter(path, layers=layers, run={"slot_order": "router_rank"}) as writer:
        for number, (subject, tokens) in enumerate(zip(subjects, tokens_D.tolist(), strict=True)):
            ids = [_draw(weight_DN[number], tokens, top_k, rng) for weight_DN in weights.values()]
            writer.add(ids, task="planted", subject=subject, doc_id=number)
        writer.close(correct={("planted", n): bool(right) for n, right in enumerate(correct)})
    return path


def ragged(subjects: int, each: int, length: int, seed: int) -> tuple[list[str], np.ndarray]:
    """Return subjects s0, s1, ... of documents, in turn, and lengths of 0.75 to 1.25 `length`."""
    rng = np.random.default_rng(seed)
    names = [f"s{number % subjects}" for number in range(subjects * each)]
    return names, rng.integers(3 * length // 4, 5 * length // 4 + 1, len(names))


def _draw(weight_N: np.ndarray, tokens: int, top_k: int, rng: np.random.Generator) -> np.ndarray:
    # The k largest of Gumbel variables with locations ln w are k draws without replacement.
    with np.errstate(divide="ignore"):
        location_N = np.log(weight_N)
    score_TN = location_N + rng.gumbel(size=(tokens, len(weight_N)))
    return np.argsort(-score_TN, axis=1)[:, :top_k]
