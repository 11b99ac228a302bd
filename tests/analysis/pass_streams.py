"""Random traces that say the forward pass of every token, and the same tokens as plain lists.

Shape suffixes: T tokens of a document, K slots.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from moe_probe.trace import LayerSpec, TraceWriter

LAYERS = (
    LayerSpec(layer=0, num_experts=5, top_k=1),
    LayerSpec(layer=2, num_experts=130, top_k=3),
    LayerSpec(layer=3, num_experts=9, top_k=2, empty_slots=True),
)
NEVER = 4
"""An expert of every layer that nothing selects."""
Used = dict[tuple[int, int], dict[int, set[int]]]
"""The experts that each (rank, pass) uses, by layer."""


def make_passes(
    path: Path, seed: int, *, ranks: int = 2, documents: int = 12, passes: int = 30, **run: Any
) -> tuple[Used, dict[tuple[int, int], int]]:
    """Write documents whose tokens ran in passes that documents share, with holes in between.

    Returns:
        What every pass used, and how many tokens it had.
    """
    rng = np.random.default_rng(seed)
    used: Used = {}
    tokens: dict[tuple[int, int], int] = {}
    with TraceWriter(path, layers=list(LAYERS), run=run, segment_tokens=64) as writer:
        for number in range(documents):
            rank, length = int(rng.integers(ranks)), int(rng.integers(1, 20))
            pass_T = np.sort(rng.integers(0, passes, length)) * 2
            ids = [_draw(rng, spec, length) for spec in LAYERS]
            for place, key in enumerate((rank, int(p)) for p in pass_T):
                tokens[key] = tokens.get(key, 0) + 1
                for spec, ids_TK in zip(LAYERS, ids, strict=True):
                    here = used.setdefault(key, {}).setdefault(spec.layer, set())
                    here.update(e for e in ids_TK[place].tolist() if e >= 0)
            writer.add(ids, task="t", doc_id=number, rank=rank, forward_passes=pass_T)
    return used, tokens


def naive_runs(used: Used, layer: int, expert: int) -> list[list[int]]:
    """Idle runs of each rank's passes in turn: before, between and after the uses."""
    found = []
    for rank in sorted({rank for rank, _ in used}):
        runs = [0]
        for key in sorted(key for key in used if key[0] == rank):
            if expert in used[key][layer]:
                runs.append(0)
            else:
                runs[-1] += 1
        found.append(runs)
    return found


def _draw(rng: np.random.Generator, spec: LayerSpec, length: int) -> np.ndarray:
    chance_TN = rng.random((length, spec.num_experts)) ** (1 + np.arange(spec.num_experts) % 4)
    chance_TN[:, NEVER] = -1
    ids_TK = np.argsort(-chance_TN, axis=1)[:, : spec.top_k]
    if spec.empty_slots:
        ids_TK[rng.random(length) < 0.4, -1] = -1
    return ids_TK
