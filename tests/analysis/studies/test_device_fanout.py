"""Devices of single tokens, counted from their sets of experts."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from moe_probe.analysis import device_fanout
from moe_probe.errors import TraceError
from moe_probe.trace import LayerSpec, TraceWriter
from tests.analysis.conftest import Run, make_run
from tests.analysis.streams import LAYERS, make_stream

DEVICES = (1, 2, 3, 5)


def missed(size: int, top_k: int, held: int) -> float:
    """Chance that a uniform set misses a device, by listing all sets of a small layer."""
    sets = list(combinations(range(size), top_k))
    return sum(min(s, default=size) >= held for s in sets) / len(sets)


@pytest.mark.parametrize(("seed", "documents", "prefix"), [(0, 14, 3), (1, 1, 0)])
def test_against_sets_of_devices(tmp_path: Path, seed: int, documents: int, prefix: int) -> None:
    trace, tokens = make_stream(tmp_path / "trace", seed, documents=documents, prefix=prefix)
    found = device_fanout(trace, devices=DEVICES)
    rows = {(r["layer"], r["devices"], r["subject"]): r for r in found.to_dict("records")}
    subjects = {"", *(token.subject for token in tokens)}
    expected_rows = 0
    for spec in LAYERS:
        for devices in DEVICES:
            if spec.num_experts % devices:
                continue
            share = spec.num_experts // devices
            for subject in subjects:
                chosen = [t.experts[spec.layer] for t in tokens if subject in ("", t.subject)]
                hits = [len({e // share for e in experts}) for experts in chosen]
                row = rows[spec.layer, devices, subject]
                expected_rows += 1
                assert (row["tokens"], row["devices_hit_most"]) == (len(hits), max(hits))
                assert row["devices_hit"] == pytest.approx(np.mean(hits))
                if spec.num_experts < 10:
                    sizes = [len(experts) for experts in chosen]
                    null = [devices * (1 - missed(spec.num_experts, k, share)) for k in sizes]
                    assert row["devices_hit_null"] == pytest.approx(np.mean(null))
                assert pd.isna(row["devices_hit_null_limited"])
                # With one device, or one expert per token, frequencies say all.
                if not spec.empty_slots and 1 in (devices, spec.top_k):
                    assert row["devices_hit_null_own"] == pytest.approx(row["devices_hit"])
                assert spec.empty_slots == pd.isna(row["devices_hit_null_own"])
    assert len(found) == expected_rows
    assert found["devices_hit"].max() > 1.5


def test_own_null_is_that_of_independent_experts(tmp_path: Path) -> None:
    """Experts of a device that always come together, or never, with the same frequencies."""
    spec = LayerSpec(
        layer=0, num_experts=4, top_k=2, facts={"num_groups": 2, "groups_per_token": 1}
    )
    together, apart = [[0, 1], [2, 3]], [[0, 2], [1, 3]]
    for name, sets in (("together", together), ("apart", apart)):
        with TraceWriter(tmp_path / name, layers=[spec]) as writer:
            writer.add([np.array(sets * 50)])
        row = device_fanout(tmp_path / name, devices=[2]).iloc[0]
        assert row["devices_hit"] == (1 if name == "together" else 2)
        # Of six sets of two of four experts, four are on both devices.
        assert row["devices_hit_null"] == pytest.approx(10 / 6)
        assert row["devices_hit_null_own"] == pytest.approx(10 / 6)
        assert row["devices_hit_null_limited"] == 1


def test_tokens_count_as_often_as_the_rule_says(tmp_path: Path) -> None:
    run = make_run(tmp_path / "trace", 2)
    found = device_fanout(run.trace, rule="raw", devices=[1])
    _, tokens = run.naive("raw")
    of_all = found[found["subject"] == ""]
    assert of_all["tokens"].tolist() == [tokens.total()] * len(run.layers)


def test_what_cannot_be_told(counts_run: Run, tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="no per-token rows, which this needs"):
        device_fanout(counts_run.trace)
    with pytest.raises(ValueError, match="0 devices"):
        device_fanout(counts_run.trace, devices=[0])
    with TraceWriter(tmp_path / "odd", layers=[LayerSpec(layer=0, num_experts=7, top_k=1)]):
        pass
    empty = device_fanout(tmp_path / "odd", devices=[7])
    none = device_fanout(tmp_path / "odd")
    assert (len(none), none.columns.tolist()) == (0, empty.columns.tolist())
    assert empty["devices_hit"].isna().all()
