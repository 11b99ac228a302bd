"""Two parts of the documents rank experts: planted rankings, noise, and every split of a few.

Shape suffixes: D documents, N experts, T tokens, K slots.
"""

from __future__ import annotations

import math
from itertools import permutations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from moe_probe.analysis import ranking_stability
from moe_probe.errors import TraceError
from moe_probe.trace import LayerSpec, TraceWriter
from tests.analysis.conftest import Run
from tests.analysis.naive import NaiveLayer
from tests.analysis.streams import LAYERS, make_stream


def test_halves_of_a_few_documents(tmp_path: Path) -> None:
    """Means over many splits are those over all splits."""
    trace, tokens = make_stream(tmp_path / "trace", 3, documents=4)
    found = ranking_stability(trace, parts=[0.5, 0.25, 0.1], splits=300)
    assert len(found) == 3 * len(LAYERS)
    spec = LAYERS[0]
    layer = NaiveLayer.of([token for token in tokens if token.document[0]], spec)
    counts = [[layer.count(e, part) for e in layer.experts] for part in layer.proper_documents]
    for row, number in zip(found.to_dict("records"), (2, 1, 0), strict=False):
        assert (row["layer"], row["documents"]) == (spec.layer, number)
        if number == 0:
            assert pd.isna([row["spearman"], row["bottom_overlap"], row["top_overlap"]]).all()
            continue
        ranks, least = [], []
        for drawn in permutations(range(4), 2 * number):
            one, other = (
                np.sum([counts[d] for d in drawn[i * number : (i + 1) * number]], axis=0)
                for i in (0, 1)
            )
            ranks.append(spearmanr(one, other).statistic)
            tied, also = one == one.min(), other == other.min()
            least.append((tied & also).sum() / tied.sum() / also.sum())
        error = np.std(ranks) / 300**0.5
        assert row["spearman"] == pytest.approx(np.mean(ranks), abs=4 * error)
        assert row["spearman_low"] >= min(ranks) - 1e-9
        assert row["number"] == 1
        error = np.std(least) / 300**0.5
        assert row["bottom_overlap"] == pytest.approx(np.mean(least), abs=4 * error + 1e-9)
        lengths = [len(part) for part in layer.proper_documents]
        assert row["tokens"] == pytest.approx(number * np.mean(lengths), rel=0.1)


def write(path: Path, slope: float) -> Path:
    """Write even documents whose experts differ in load by `slope` per step."""
    rng = np.random.default_rng(5)
    with TraceWriter(path, layers=[LayerSpec(layer=0, num_experts=40, top_k=2)]) as writer:
        for number in range(64):
            score_TN = rng.gumbel(size=(30, 40)) + slope * np.arange(40)
            writer.add([np.argsort(-score_TN, axis=1)[:, :2]], doc_id=number)
    return path


def test_planted_ranking_and_noise(tmp_path: Path) -> None:
    planted = ranking_stability(write(tmp_path / "planted", 0.05))
    assert planted["documents"].tolist() == [32, 16, 8, 4]
    assert planted["spearman"].is_monotonic_decreasing
    assert planted["spearman"][0] > 0.8
    assert planted["top_overlap"][0] > 0.5
    noise = ranking_stability(write(tmp_path / "noise", 0.0))
    assert (noise["spearman"].abs() < 2 * noise["spearman_null_sd"]).all()
    assert noise["bottom_overlap"].mean() == pytest.approx(0.1, abs=0.05)
    assert noise["overlap_null"].tolist() == [0.1] * 4
    # 4 of 40 drawn twice: hypergeometric, as a share of the 4.
    spread = math.sqrt(4 * 0.1 * 0.9 * 36 / 39) / 4
    assert noise["overlap_null_sd"].tolist() == pytest.approx([spread] * 4)
    again = ranking_stability(tmp_path / "noise", threads=1)
    assert again.equals(noise), "same seed, same numbers"


def test_what_cannot_be_told(counts_run: Run, tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="no per-token rows, which this needs"):
        ranking_stability(counts_run.trace)
    for options in ({"splits": 0}, {"parts": [0.6]}):
        with pytest.raises(ValueError, match="splits into parts"):
            ranking_stability(counts_run.trace, **options)
    trace, _ = make_stream(tmp_path / "one", 1, documents=1, prefix=0)
    assert ranking_stability(trace)["spearman"].isna().all()
