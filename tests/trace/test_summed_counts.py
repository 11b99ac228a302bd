"""The counts of a finished trace are one small part, and never count a part twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from moe_probe.trace import open_trace
from moe_probe.trace.settling import settle
from moe_probe.trace.writer import TraceWriter
from tests.trace.recordings import LAYERS, Recording, random_ids, record, table_counts


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Recording, Path]:
    """A trace as a kill leaves it between writing the sum and deleting what it holds."""
    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", lambda path, missing_ok=False: None)
        recording = record(tmp_path / "t", seed=3, capture="weights")
    return recording, tmp_path / "t" / "counts"


def test_many_parts_become_one(tmp_path: Path) -> None:
    recording = record(tmp_path / "t", seed=3)
    assert len(list((tmp_path / "t" / "routing").iterdir())) > 3
    names = sorted(path.name for path in (tmp_path / "t" / "counts").iterdir())
    assert len(names) == 2
    assert names[0] == "part-0-shared.parquet"
    assert names[1].startswith("part-0-to")
    counts = {key: value[:2] for key, value in table_counts(open_trace(tmp_path / "t")).items()}
    assert counts == {key: value[:2] for key, value in recording.naive_counts().items()}


def test_a_kill_before_the_parts_are_deleted_counts_none_twice(
    kept: tuple[Recording, Path],
) -> None:
    recording, counts = kept
    assert len(list(counts.iterdir())) > 3
    trace = open_trace(recording.path)
    assert len(trace.counts_parts) == 2
    expected = recording.naive_counts()
    assert table_counts(trace) == {key: pytest.approx(value) for key, value in expected.items()}


def test_a_resumed_recording_adds_to_the_sum(kept: tuple[Recording, Path]) -> None:
    recording, counts = kept
    before = sum(value[0] for value in table_counts(open_trace(recording.path)).values())
    added, chance = 0, np.random.default_rng(1)
    with TraceWriter(
        recording.path, layers=LAYERS, capture="weights", resume=True, segment_tokens=40
    ) as writer:
        for _ in range(6):
            ids = [abs(random_ids(chance, spec, 30)) for spec in LAYERS]
            weights, scalars = [ids_TK * 0.1 for ids_TK in ids], [np.zeros((30, 3))] * 2
            writer.add(ids, topk_weights=weights, router_scalars=scalars, subject="new")
            added += sum(ids_TK.size for ids_TK in ids)
    trace = open_trace(recording.path)
    assert len(list(counts.iterdir())) == 2
    assert sum(value[0] for value in table_counts(trace).values()) == before + added
    settle(trace.files, trace.run)
    assert sum(v[0] for v in table_counts(open_trace(recording.path)).values()) == before + added
