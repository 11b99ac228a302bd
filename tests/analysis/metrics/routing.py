"""Random routing whose metrics a naive loop can tell, and a real sample.

Shape suffixes: T tokens, L layers, K slots.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from moe_probe.analysis.metrics.token_counts import VocabularyCounts

DATA = Path(__file__).parents[3].parent / "shared/data/deepseek-v2-lite"
NONE = 255
"""An empty slot."""
needs_sample = pytest.mark.skipif(
    not DATA.is_dir(), reason="the DeepSeek-V2-Lite sample is not on this machine"
)


def draw(
    seed: int, tokens: int, num_experts: int, top_k: int, *, empty: bool = False
) -> np.ndarray:
    """Return ids uint8 [T, K]: some experts more popular, the last one never selected.

    With `empty` each slot is left empty one time in four.
    """
    rng = np.random.default_rng(seed)
    score_TN = rng.gumbel(size=(tokens, num_experts)) + rng.normal(0, 1, num_experts)
    score_TN[:, -1] = -np.inf
    ids_TK = np.argsort(-score_TN, axis=1)[:, :top_k].astype(np.uint8)
    if empty:
        ids_TK[rng.random(ids_TK.shape) < 0.25] = NONE
    return ids_TK


def sets_of(ids_TK: np.ndarray) -> list[set[int]]:
    """Return the experts of each token, without empty slots."""
    return [set(ids) - {NONE} for ids in ids_TK.tolist()]


def vocabulary_counts(
    token_id_T: np.ndarray, ids_TK: np.ndarray, num_experts: int
) -> VocabularyCounts:
    """Count selections token by token; ids of num_experts and above are empty slots."""
    token_ids_X, tokens_X = np.unique(token_id_T, return_counts=True)
    counts_XN = np.zeros((len(token_ids_X), num_experts), np.int64)
    for token_id, ids in zip(token_id_T.tolist(), ids_TK.tolist(), strict=True):
        for expert in ids:
            if expert < num_experts:
                counts_XN[token_ids_X == token_id, expert] += 1
    return VocabularyCounts.of_table(token_ids_X, tokens_X, counts_XN)


def sample(task: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return ids [T, L, K] and weights [T, L, K] of DeepSeek-V2-Lite, and its document starts."""
    arrays = np.load(DATA / f"{task}.npz")
    starts_D = np.cumsum(arrays["document_lengths"]) - arrays["document_lengths"]
    return arrays["experts"], arrays["weights"], starts_D
