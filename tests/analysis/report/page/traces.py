"""Traces that pages are made of: known routing, and names that no page should trust.

Shape suffixes: T tokens, N experts of a layer, K slots.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from moe_probe.trace import LayerSpec, TraceWriter

LAYERS = [
    LayerSpec(layer=3, num_experts=16, top_k=2),
    LayerSpec(layer=7, num_experts=12, top_k=2),
    LayerSpec(layer=8, num_experts=16, top_k=1),
]
SUBJECTS = {"anatomy": "stem", "law": "humanities", "logic": "humanities"}
IDLE = 5
"""An expert of every layer that nothing selects."""
SCRIPT = "</script><script>window.harmed = 1</script>"
HOSTILE = [
    f"{SCRIPT}<img src=x onerror='window.harmed=1'>",
    "quotes \"'` & <b>bold</b> ${1} $title {{x}}",
    "\u202etfel ot thgir \u200f\u2067 \u202c",
    "line\none\r\ntwo\ttab \x1b[31m\x00\x7f",
    "=cmd|' /C calc'!A0",
    "m" * 10_000,
    "模型" * 40,
]


def write(path: Path, subjects: dict[str, str], *, task: str = "task", **run: object) -> Path:
    """Write a trace of 30 documents of each subject, in three layers; experts differ by subject."""
    rng = np.random.default_rng(1)
    with TraceWriter(
        path, layers=LAYERS, run={"model": "m", "slot_order": "router_rank", **run}
    ) as writer:
        for number, (subject, area) in enumerate(subjects.items()):
            for document in range(30):
                length = int(rng.integers(20, 60))
                ids = [_draw(rng, spec, number, length) for spec in LAYERS]
                writer.add(
                    ids,
                    token_ids=rng.integers(0, 500, length).astype(np.int32),
                    doc_id=number * 100 + document,
                    new_from=0,
                    prefix_end=8,
                    question_end=length - 4,
                    cue_end=length - 2,
                    choice_end=length,
                    task=task,
                    subject=subject,
                    area=area,
                )
    return path


def _draw(rng: np.random.Generator, spec: LayerSpec, subject: int, length: int) -> np.ndarray:
    weight_N = 1.0 + np.arange(spec.num_experts) % 4
    weight_N[subject :: len(SUBJECTS) + 3] *= 4
    weight_N[IDLE] = 0
    # The k largest of exponential clocks: k distinct experts by weight.
    with np.errstate(divide="ignore"):
        clock_TN = rng.exponential(size=(length, spec.num_experts)) / weight_N
    return np.argsort(clock_TN, axis=1)[:, : spec.top_k]
