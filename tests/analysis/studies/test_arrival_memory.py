"""Memory of inter-arrival times against a list of tokens, and of streams that have or lack it.

Shape suffixes: T tokens, K slots.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from moe_probe.analysis import arrival_memory
from moe_probe.errors import TraceError, UsageError
from moe_probe.trace import LayerSpec, TraceWriter
from tests.analysis.conftest import Run, make_run
from tests.analysis.streams import LAYERS, NEVER, make_stream


@pytest.mark.parametrize(("seed", "documents", "prefix"), [(0, 60, 3), (1, 1, 0)])
def test_against_a_list_of_tokens(tmp_path: Path, seed: int, documents: int, prefix: int) -> None:
    trace, tokens = make_stream(tmp_path / "trace", seed, documents=documents, prefix=prefix)
    assert documents == 1 or len(trace.routing_parts) > 2
    rows = iter(arrival_memory(trace, threads=2).to_dict("records"))
    known = 0
    for spec in LAYERS:
        for expert in range(spec.num_experts):
            row = next(rows)
            assert (row["layer"], row["expert"]) == (spec.layer, expert)
            slots = (token.experts[spec.layer] for token in tokens)
            times = np.diff([t for t, chosen in enumerate(slots) if expert in chosen])
            assert row["pairs"] == max(len(times) - 1, 0)
            assert row["memory_null"] == 0
            x, y = times[:-1], times[1:]
            if len(x):
                assert row["memory_null_sd"] == pytest.approx(1 / math.sqrt(len(x)))
            else:
                assert pd.isna(row["memory_null_sd"])
            if len(x) < 2 or not (x.std() and y.std()):
                assert pd.isna(row["memory"]), expert
                assert expert != NEVER or row["pairs"] == 0
                continue
            known += 1
            assert row["memory"] == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-9)
    assert next(rows, None) is None
    assert known > (15 if documents > 1 else 0)


def memory(path: Path, expert_T: np.ndarray) -> dict[int, Any]:
    with TraceWriter(path, layers=[LayerSpec(layer=3, num_experts=4, top_k=1)]) as writer:
        for number, ids_T in enumerate(np.array_split(expert_T, 20)):
            writer.add([ids_T[:, None]], doc_id=number)
    return {row["expert"]: row for row in arrival_memory(path).to_dict("records")}


def test_streams_with_and_without_memory(tmp_path: Path) -> None:
    """Expert 1 is rare in one half of the stream and busy in the other."""
    rng = np.random.default_rng(0)
    alike = memory(tmp_path / "alike", rng.integers(0, 4, 40_000))
    assert all(abs(row["memory"]) < 4 * row["memory_null_sd"] for row in alike.values())
    rate_T = np.repeat([0.05, 0.5], 20_000)
    changing = memory(tmp_path / "changing", (rng.random(40_000) < rate_T).astype(int))
    assert changing[1]["memory"] > 10 * changing[1]["memory_null_sd"]
    # A long wait after each short one, and the other way round.
    turning = memory(tmp_path / "turning", np.resize([0, 1, 1, 1, 0], 1_000))
    assert turning[0]["memory"] == pytest.approx(-1)


def test_what_cannot_be_told(counts_run: Run, tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="no per-token rows, which this needs"):
        arrival_memory(counts_run.trace)
    shared = make_run(tmp_path / "shared", 0).trace
    with pytest.raises(UsageError, match="Distances between selections need every token once"):
        arrival_memory(shared, rule="raw")
