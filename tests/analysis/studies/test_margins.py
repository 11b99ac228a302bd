"""Experts and the margin of the answer, from single documents."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe_probe.analysis import margin_contrast
from moe_probe.errors import TraceError
from moe_probe.trace import LayerSpec, TraceWriter
from tests.analysis.streams import make_stream

LAYER = LayerSpec(layer=2, num_experts=6, top_k=2)


def write(path: Path, seed: int, effect: float) -> list[dict[str, Any]]:
    """Documents of two subjects with three scored choices, some unanswered or of one choice.

    The choices of every other document are asked by a sequence each.
    """
    rng, found = np.random.default_rng(seed), []
    correct: dict[tuple[str, int], bool] = {}
    with TraceWriter(path, layers=[LAYER]) as writer:
        for number in range(60):
            subject, right = ("law", "art")[number % 2], bool(rng.integers(2))
            scores = rng.normal(size=3) * 2 + (number % 2)
            margin = float(np.sort(scores)[-1] - np.sort(scores)[-2]) * (1 if right else -1)
            asked = [[0, 1, 2]] if number % 4 < 2 else [[0], [1], [2]]
            ids: list[Any] = []
            for choices in asked:
                length = int(rng.integers(3, 7))
                chance = rng.random((length, 6)) + effect * margin * (np.arange(6) == 1)
                ids.append(np.argsort(-chance, axis=1)[:, :2])
                facts: Any = {"task": "t", "subject": subject, "doc_id": number}
                sequence = writer.add([ids[-1]], **facts, choices=choices, kind="loglikelihood")
                for choice in choices[: 1 if number % 10 == 9 else 3]:
                    if number % 10 != 9 or choice == 0:
                        writer.answer(sequence, choice, loglik=float(scores[choice]))
            known = number % 10 not in (8, 9)
            if number % 10 != 8:
                correct["t", number] = right
            found.append({"subject": subject, "ids": ids, "margin": margin, "known": known})
        writer.close(correct=correct)
    return found


@pytest.mark.parametrize(("seed", "effect"), [(0, 0.0), (1, 0.3)])
def test_slopes_within_subjects(tmp_path: Path, seed: int, effect: float) -> None:
    documents = [d for d in write(tmp_path / "t", seed, effect) if d["known"]]
    found = margin_contrast(tmp_path / "t")
    assert set(found["documents"]) == {len(documents)} == {48}
    for expert, row in enumerate(found.to_dict("records")):
        product = square = variance = 0.0
        for subject in ("law", "art"):
            mine = [d for d in documents if d["subject"] == subject]
            use = np.array([np.mean(np.concatenate(d["ids"]) == expert) * 2 for d in mine])
            margin = np.array([d["margin"] for d in mine])
            use, margin = use - use.mean(), margin - margin.mean()
            product += float(use @ margin)
            square += float(margin @ margin)
            # Of a sum of products when one side is dealt out anew.
            variance += float(use @ use) * float(margin @ margin) / (len(mine) - 1)
        assert row["expert"] == expert
        assert row["slope"] == pytest.approx(product / square)
        assert row["standard_error"] == pytest.approx(math.sqrt(variance) / square)
        assert row["z"] == pytest.approx(product / math.sqrt(variance))
    values: Any = found["q_value"].tolist()
    assert (min(values) == values[1] < 0.01) if effect else min(values) > 0.05


def test_what_cannot_be_told(tmp_path: Path) -> None:
    trace, _ = make_stream(tmp_path / "trace", 0)
    with pytest.raises(TraceError, match="has of no document the scores of two choices"):
        margin_contrast(trace)
