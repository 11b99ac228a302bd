"""Real routing of DeepSeek-V2-Lite: as the arrays it was published in, and as a trace of them.

Shape suffixes: T tokens, L layers, K slots, N experts, D documents.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from examples.import_arrays import Source, import_arrays
from moe_probe.analysis.gathering import gather
from moe_probe.analysis.settings import Settings
from moe_probe.analysis.sums import Sums
from tests.analysis.documents import DATA

EXPERTS, TOP_K, LAYERS = 64, 6, range(1, 27)


@dataclass(frozen=True)
class Golden:
    """Tasks in canonical order, which is that of their names."""

    sums: Sums
    ids_TLK: np.ndarray
    """Slots by descending weight."""
    weights_TLK: np.ndarray
    tokens_D: np.ndarray
    subject_D: np.ndarray
    """Index of each document's task."""

    @property
    def document_T(self) -> np.ndarray:
        return np.repeat(np.arange(len(self.tokens_D)), self.tokens_D)

    @cached_property
    def selected_LTN(self) -> np.ndarray:
        selected_LTN = np.zeros((len(LAYERS), len(self.ids_TLK), EXPERTS), bool)
        np.put_along_axis(selected_LTN, self.ids_TLK.swapaxes(0, 1), True, axis=2)
        return selected_LTN

    def ids(self, layer: int) -> np.ndarray:
        return np.asarray(self.ids_TLK[:, layer - 1])

    def selected(self, layer: int) -> np.ndarray:
        return np.asarray(self.selected_LTN[layer - 1])


def golden(folder: Path, tasks: list[str], settings: Settings) -> Golden:
    """Import tasks into one trace and gather its sums."""
    sources = [Source.of(DATA / f"{task}.npz") for task in tasks]
    path = import_arrays(
        sources, folder, num_experts=EXPERTS, first_layer=1, task="esft", force=False
    )
    ids, weights, lengths = zip(*(_arrays(task) for task in sorted(tasks)), strict=True)
    return Golden(
        sums=gather(path, settings),
        ids_TLK=np.concatenate(ids),
        weights_TLK=np.concatenate(weights),
        tokens_D=np.concatenate(lengths),
        subject_D=np.repeat(np.arange(len(tasks)), [len(part) for part in lengths]),
    )


def _arrays(task: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    with np.load(DATA / f"{task}.npz") as file:
        ids_TLK, weights_TLK = file["experts"].astype(np.int64), file["weights"].astype(np.float64)
        order_TLK = np.argsort(-weights_TLK, axis=2, kind="stable")
        sorted_TLK = [
            np.take_along_axis(part, order_TLK, axis=2) for part in (ids_TLK, weights_TLK)
        ]
        return *sorted_TLK, file["document_lengths"].astype(np.int64)
