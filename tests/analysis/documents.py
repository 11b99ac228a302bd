"""Documents whose tokens select experts: random small ones, and those of DeepSeek-V2-Lite.

Shape suffixes: C documents, T tokens, K slots, N experts of a layer, S subjects.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

DATA = Path(__file__).parents[2].parent / "shared/data/deepseek-v2-lite"
needs_data = pytest.mark.skipif(
    not DATA.is_dir(), reason="the DeepSeek-V2-Lite sample is not on this machine"
)
IDLE = 3
"""An expert that no random document selects."""


@dataclass(frozen=True)
class Documents:
    """Counts of one layer."""

    counts_CN: np.ndarray
    tokens_C: np.ndarray
    subject_C: np.ndarray
    subjects: int

    @property
    def counts_SN(self) -> np.ndarray:
        return np.stack([self.counts_CN[self.subject_C == s].sum(0) for s in range(self.subjects)])

    @property
    def tokens_S(self) -> np.ndarray:
        return np.array([self.tokens_C[self.subject_C == s].sum() for s in range(self.subjects)])

    @property
    def documents_S(self) -> np.ndarray:
        return np.bincount(self.subject_C, minlength=self.subjects)


def random_documents(
    seed: int,
    documents: int = 30,
    subjects: int = 4,
    num_experts: int = 7,
    top_k: int = 2,
    *,
    apart: float = 0.0,
    alike: float = 0.5,
) -> Documents:
    """Make ragged documents of all subjects but the last, which has none.

    Args:
        apart: How much subjects differ.
        alike: How much documents differ, whatever their subject.
    """
    rng = np.random.default_rng(seed)
    subject_C = rng.integers(0, subjects - 1, documents)
    tokens_C = rng.integers(1, 12, documents)
    bias_SN = apart * rng.normal(size=(subjects, num_experts))
    counts_CN = np.zeros((documents, num_experts), np.uint16)
    for counts_N, tokens, subject in zip(counts_CN, tokens_C, subject_C, strict=True):
        bias_N = bias_SN[subject] + alike * rng.normal(size=num_experts)
        bias_N[IDLE] = -np.inf
        score_TN = bias_N + rng.gumbel(size=(tokens, num_experts))
        ids_TK = np.argsort(-score_TN, axis=1)[:, :top_k]
        counts_N += np.bincount(ids_TK.ravel(), minlength=num_experts).astype(np.uint16)
    return Documents(counts_CN, tokens_C, subject_C, subjects)


def deepseek_tokens(layer: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return ids [T, K], document [T] and subject by document (0 law, 1 intent) of one layer."""
    files = [np.load(DATA / f"{task}.npz") for task in ("law", "intent")]
    lengths = [file["document_lengths"] for file in files]
    length_C = np.concatenate(lengths)
    ids_TK = np.concatenate([file["experts"][:, layer] for file in files])
    document_T = np.repeat(np.arange(len(length_C)), length_C)
    return ids_TK, document_T, np.repeat([0, 1], [len(part) for part in lengths])


def deepseek_documents(layer: int) -> Documents:
    """Count the two tasks by document; `layer` is an index from 0."""
    ids_TK, document_T, subject_C = deepseek_tokens(layer)
    counts_CN = np.zeros((len(subject_C), 64), np.uint16)
    np.add.at(counts_CN, (document_T[:, None], ids_TK), 1)
    return Documents(counts_CN, np.bincount(document_T), subject_C, 2)
