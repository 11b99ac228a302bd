"""Segments at equal positions, against loops over tokens and planted differences.

Shape suffixes: T tokens, K slots, N experts.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from moe_probe.analysis import matched_segments
from moe_probe.errors import TraceError
from moe_probe.trace import SEGMENTS, LayerSpec, TraceWriter
from tests.analysis.conftest import Run

EXPERTS = 8
Rate = Callable[[str, int], np.ndarray]


def write(path: Path, documents: int, rate: Rate, *, seed: int = 0) -> list[tuple[str, int, int]]:
    """Write documents of three segments; return segment, position and expert of every token."""
    rng = np.random.default_rng(seed)
    tokens: list[tuple[str, int, int]] = []
    with TraceWriter(path, layers=[LayerSpec(layer=3, num_experts=EXPERTS, top_k=1)]) as writer:
        for number in range(documents):
            question, cue = int(rng.integers(2, 14)), int(rng.integers(0, 6))
            stop = question + cue + int(rng.integers(1, 5))
            names = ["question"] * question + ["cue"] * cue
            names += ["choice"] * (stop - len(names))
            experts = [
                int(rng.choice(EXPERTS, p=rate(name, position)))
                for position, name in enumerate(names)
            ]
            writer.add(
                [np.array(experts)[:, None]],
                doc_id=number,
                subject="law",
                prefix_end=0,
                question_end=question,
                cue_end=question + cue,
                choice_end=stop,
            )
            tokens += zip(names, range(stop), experts, strict=True)
    return tokens


def divergence(one: list[float], other: list[float]) -> float:
    """Jensen-Shannon divergence of two distributions, bits."""
    mean = [(p + q) / 2 for p, q in zip(one, other, strict=True)]
    return sum(
        p * math.log2(p / m) / 2
        for side in (one, other)
        for p, m in zip(side, mean, strict=True)
        if p
    )


def share(counts: Counter[int]) -> list[float]:
    return [counts[expert] / counts.total() for expert in range(EXPERTS)]


def by_place(segment: str, position: int) -> np.ndarray:
    """Experts depend on the octave alone."""
    weights = np.ones(EXPERTS)
    weights[position.bit_length()] = 12
    return np.asarray(weights / weights.sum())


def by_segment(segment: str, position: int) -> np.ndarray:
    weights = np.ones(EXPERTS)
    weights[SEGMENTS.index(segment)] = 12
    return np.asarray(weights / weights.sum())


def test_against_tokens_one_by_one(tmp_path: Path) -> None:
    tokens = write(tmp_path / "trace", 60, by_place)
    counts: dict[tuple[str, int], Counter[int]] = defaultdict(Counter)
    for segment, position, expert in tokens:
        counts[segment, position.bit_length()][expert] += 1
    found = matched_segments(tmp_path / "trace", threads=1).to_dict("records")
    pairs = list(combinations(("question", "cue", "choice"), 2))
    for (one, other), row in zip(pairs, found, strict=True):
        assert (row["segment"], row["other"]) == (one, other)
        octaves = [b for b in range(9) if counts[one, b] and counts[other, b]]
        assert (row["layer"], row["octaves"]) == (3, len(octaves))
        mixed = {}
        weights = [min(counts[one, b].total(), counts[other, b].total()) for b in octaves]
        for name in (one, other):
            parts = [share(counts[name, b]) for b in octaves]
            mixed[name] = [
                sum(w * part[e] for w, part in zip(weights, parts, strict=True)) / sum(weights)
                for e in range(EXPERTS)
            ]
        assert row["matched_bits"] == pytest.approx(divergence(mixed[one], mixed[other]))
        whole = {name: Counter(e for s, _, e in tokens if s == name) for name in (one, other)}
        expected = divergence(share(whole[one]), share(whole[other]))
        assert row["divergence_bits"] == pytest.approx(expected)


def test_position_alone_and_segment_alone(tmp_path: Path) -> None:
    write(tmp_path / "place", 500, by_place)
    write(tmp_path / "segment", 500, by_segment)
    place = matched_segments(tmp_path / "place").iloc[:2]
    assert (place["divergence_bits"] > 0.03).all()
    assert (place["matched_bits"] < 5 * place["matched_bits_null"]).all()
    segment = matched_segments(tmp_path / "segment").iloc[:2]
    assert (segment["matched_bits"] > 0.2).all()
    assert (segment["matched_bits"] > 50 * segment["matched_bits_null"]).all()


def test_null_is_what_equal_segments_give(tmp_path: Path) -> None:
    found = []
    for seed in range(12):
        write(tmp_path / str(seed), 60, by_place, seed=seed)
        table = matched_segments(tmp_path / str(seed), threads=1)
        found.append(table[["matched_bits", "matched_bits_null"]].to_numpy()[0])
    bits, null = np.mean(found, axis=0)
    assert bits == pytest.approx(null, rel=0.35)


def test_what_cannot_be_told(counts_run: Run, tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="per-token rows"):
        matched_segments(counts_run.trace)
    # One document is in one half.
    write(tmp_path / "one", 1, by_place)
    found = matched_segments(tmp_path / "one")
    assert found["matched_bits_null"].isna().all()
