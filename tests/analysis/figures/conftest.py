"""Analyses to draw: planted structure, a layer of one shape and of many, next to nothing.

Shape suffixes: D documents, N experts of a layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe_probe.analysis import Analysis, analyse
from tests.analysis.planted import ragged, write

FEW: dict[str, Any] = {
    **{"shuffles": 4, "replicates": 20, "permutations": 19},
    **{"windows": (50, 400), "threads": 1},
}
"""Too few to conclude anything, and quick."""
IDLE, RARE, BURSTY = 5, 6, 7
"""Experts of the planted trace: never selected, rarely, and in one document of eleven."""
SUBJECT_OF = {10: "s0", 11: "s1", 12: "s2"}
"""Experts that a subject prefers six to one."""


def uniform(num_experts: int, documents: int) -> np.ndarray:
    """Equal weights for every document: [D, N]."""
    return np.ones((documents, num_experts))


@pytest.fixture(scope="session")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Analysis:
    """Three layers of 16 experts, two per token, on 35 documents of each of three subjects."""
    names, tokens_D = ragged(3, 35, 40, 0)
    weight_DN = np.tile(1.0 + np.arange(16) % 3, (len(names), 1))
    weight_DN[:, [IDLE, RARE]] = 0, 0.02
    weight_DN[:, BURSTY] = np.where(np.arange(len(names)) % 11, 0.01, 40)
    for expert, subject in SUBJECT_OF.items():
        weight_DN[:, expert] *= np.where(np.array(names) == subject, 6, 1)
    weights = dict.fromkeys((3, 4, 9), weight_DN)
    path = tmp_path_factory.mktemp("planted") / "trace"
    return analyse(write(path, weights, names, tokens_D, top_k=2, seed=1), **FEW)


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Analysis]:
    """What figures have to stand: few and many layers and experts, one subject, five tokens."""
    folder = tmp_path_factory.mktemp("shapes")

    def make(
        name: str, sizes: Mapping[int, int], subjects: int, each: int, length: int, top_k: int
    ) -> Analysis:
        names, tokens_D = ragged(subjects, each, length, 1)
        weights = {layer: uniform(size, len(names)) for layer, size in sizes.items()}
        path = write(folder / name, weights, names, tokens_D, top_k=top_k, seed=2)
        return analyse(path, **FEW)

    return {
        "top-1, one layer, one subject": make("one", {0: 8}, 1, 30, 30, 1),
        "layers of three sizes": make("sizes", {1: 8, 3: 5, 7: 12}, 2, 30, 20, 2),
        "nothing significant": make("even", dict.fromkeys(range(9), 8), 4, 30, 20, 2),
        "five tokens": make("tiny", {0: 8}, 2, 1, 3, 2),
        "all experts selected": make("all", {0: 4}, 2, 3, 5, 4),
        "57 subjects": make("many", {2: 8}, 57, 1, 8, 2),
        "60 layers of 256": make("wide", dict.fromkeys(range(3, 63), 256), 2, 3, 20, 8),
    }


@pytest.fixture(scope="session")
def counts_only(tmp_path_factory: pytest.TempPathFactory) -> Analysis:
    """Of a trace without rows: live traffic that was only counted."""
    from tests.analysis.conftest import make_run

    run = make_run(Path(tmp_path_factory.mktemp("counts")) / "trace", 0, capture="counts")
    return analyse(run.trace, **FEW)
