"""A session fed by hand, over a real trace, and what is then in the trace.

Shape suffixes: T tokens, B bytes of one token's ids.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from moe_probe.hooks.packing import PackedRows
from moe_probe.hooks.step_buffer import StepRows
from moe_probe.hooks.vllm.batch import NewRequest
from moe_probe.hooks.vllm.session import Session, Step
from moe_probe.trace import LayerSpec, TraceWriter, open_trace

LAYERS = [
    LayerSpec(layer=1, num_experts=8, top_k=2),
    LayerSpec(layer=2, num_experts=8, top_k=2),
]
NOBODY = np.empty(0, np.int64)


class Engine:
    """Feeds a session; a token's experts follow from the tokens up to it, as in a causal model."""

    def __init__(self, path: Path, **options: Any) -> None:
        writer = {"segment_tokens": options.pop("segment_tokens", 1000)}
        self.path = path
        options = {"keeps_tokens": False, "waits": True, **options}
        self.session = Session(TraceWriter(path, layers=LAYERS, **writer), **options)
        self._ended: dict[str, int | None] = {}
        self._new: list[NewRequest] = []
        self.texts: dict[str, list[int]] = {}

    def admit(
        self, name: str, prompt: list[int], tags: dict[str, Any] | None = None, cached: int = 0
    ) -> str:
        engine_name = f"{name}-0123abcd"
        self.texts[engine_name] = list(prompt)
        self._new.append(NewRequest(engine_name, len(prompt), cached, list(prompt), tags or {}))
        return engine_name

    def run(
        self, name: str, start: int, stop: int, silent: tuple[bool, ...] = (False,) * 2
    ) -> None:
        text = self.texts[name]
        text.extend(range(100 + len(text), 100 + stop))
        tokens_T = torch.tensor(text[start:stop], dtype=torch.int32)
        rows = PackedRows(
            torch.from_numpy(ids_of(text)[start:stop]),
            None,
            token_id_T=tokens_T,
            position_T=torch.arange(start, stop),
            is_silent_L=torch.tensor(silent),
        )
        self._send([name], np.array([stop - start]), StepRows(rows))

    def end(self, name: str, length: int | None) -> None:
        self._ended[name] = length

    def serve(self, name: str, prompt: list[int], num_generated: int = 0, **admit: Any) -> None:
        """Run a request from its beginning to its end."""
        name = self.admit(name, prompt, **admit)
        self.run(name, admit.get("cached", 0), len(prompt) + num_generated)
        self.end(name, len(prompt) + num_generated)

    def close(self, status: str | None = None, **options: Any) -> dict[str, Any]:
        """End; return run.json."""
        self._send([], NOBODY, None)
        self.session.close(status, {}, **options)
        return dict(json.loads((self.path / "run.json").read_text()))

    def _send(self, names: list[str], counts_Q: np.ndarray, rows: StepRows | None) -> None:
        step = Step(self._ended, self._new, names, counts_Q, rows)
        self._ended, self._new = {}, []
        self.session.step(step)


def ids_of(tokens: list[int]) -> np.ndarray:
    """Experts [T, 4] of two layers, different in a layer and told by the tokens up to each."""
    sums_T = np.cumsum(np.asarray(tokens, np.int64) + 1)
    first_T = sums_T % 8
    other_T = (first_T + 1 + sums_T // 8 % 7) % 8
    return np.stack([first_T, other_T, other_T, first_T], axis=1).astype(np.uint8)


def rows_of(path: Path) -> dict[tuple[int, int], tuple[int, list[int]]]:
    """Token id and experts of every stored row, by sequence and position."""
    found = {}
    for block in open_trace(path).scan():
        ids_TB = np.concatenate([block.topk_ids(spec.layer) for spec in LAYERS], axis=1)
        names = zip(block.sequence_id_T.tolist(), block.position_T.tolist(), strict=True)
        for index, name in enumerate(names):
            found[name] = (int(block.token_id_T[index]), ids_TB[index].tolist())
    return found


def num_counted(path: Path) -> int:
    counts = open_trace(path).counts.to_pandas()
    return int(counts[counts.layer == 1]["count"].sum()) // 2
