"""Exported loads: read as their consumers read them, and placed by a balancer written again."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_probe.analysis import Rule
from moe_probe.analysis.exports.choice import Choice
from moe_probe.analysis.exports.files import write_json, write_matrix
from moe_probe.analysis.exports.placement import expert_loads, logical_count
from moe_probe.errors import UsageError
from moe_probe.trace import LayerSpec, TraceWriter, open_trace
from tests.analysis.exports.eplb import rebalance_experts
from tests.trace.recordings import Recording, record

LAYERS = [LayerSpec(layer=n, num_experts=12, top_k=3) for n in (1, 2, 4)]
# The example of the balancer's authors: two layers, four groups, two nodes with four GPUs each.
EXAMPLE = [
    [90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
    [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27],
]
PLACED = [
    [5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1],
    [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1],
]


def choose(path: Path, rule: Rule = Rule.RAW, **what: Any) -> Choice:
    return Choice.of(open_trace(path), rule, **what)


@pytest.fixture
def recording(tmp_path: Path) -> Recording:
    run = {"model_facts": {"num_layers": 7}}
    return record(tmp_path / "trace", 0, layers=LAYERS, run=run)


def naive(recording: Recording, subject: str | None = None) -> np.ndarray:
    """Selections of every run, by layer and expert."""
    loads_LN = np.zeros((3, 12), np.int64)
    for sequence, layer, _, _, expert, _ in recording.selections():
        if subject in (None, sequence.subject):
            loads_LN[(1, 2, 4).index(layer), expert] += sequence.multiplicity
    return loads_LN


def test_the_balancer_places_the_published_example() -> None:
    placed, where, number = rebalance_experts(np.array(EXAMPLE), 16, 4, 2, 8)
    assert placed.tolist() == PLACED
    assert number.sum(axis=1).tolist() == [16, 16]
    assert where[0, 5].tolist() == [0, 2]


def test_loads_are_the_selections_of_every_run(recording: Recording) -> None:
    assert expert_loads(choose(recording.path)).tolist() == naive(recording).tolist()
    some = expert_loads(choose(recording.path, layers="2-4", subjects=["subject 1"]))
    assert some.tolist() == naive(recording, "subject 1")[1:].tolist()


@pytest.mark.parametrize("suffix", [".npy", ".csv"])
def test_matrix_is_what_the_balancer_takes(
    recording: Recording, tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"load{suffix}"
    write_matrix(expert_loads(choose(recording.path)), (1, 2, 4), path, suffix)
    if suffix == ".npy":
        weight_LN = np.load(path, allow_pickle=False)
    else:
        frame = pd.read_csv(path, index_col="layer")
        assert frame.index.tolist() == [1, 2, 4]
        weight_LN = frame.to_numpy()
    assert weight_LN.dtype == np.int64
    assert weight_LN.tolist() == naive(recording).tolist()
    placed, _, number = rebalance_experts(weight_LN, 16, 4, 2, 8)
    for row_R, number_N, load_N in zip(placed, number, weight_LN, strict=True):
        # Twelve experts on eight GPUs of two: replicas beat the best placement of single experts.
        on_gpu = (load_N / number_N)[row_R].reshape(8, 2).sum(axis=1)
        assert set(row_R) == set(range(12))
        assert on_gpu.max() <= np.sort(load_N)[-2:].sum()
        assert on_gpu.sum() == pytest.approx(load_N.sum())


@given(st.lists(st.lists(st.integers(0, 2**62), min_size=3, max_size=3), min_size=1, max_size=4))
def test_every_number_survives_both_files(loads: list[list[int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        matrix, layers = np.array(loads, np.int64), range(5, 5 + len(loads))
        for suffix in (".npy", ".csv"):
            write_matrix(matrix, layers, Path(folder) / f"load{suffix}", suffix)
        assert np.load(Path(folder) / "load.npy", allow_pickle=False).tolist() == loads
        frame = pd.read_csv(Path(folder) / "load.csv", index_col="layer")
        assert frame.to_numpy().tolist() == loads
        assert frame.index.tolist() == list(layers)


def test_logical_count_has_a_row_for_every_layer(recording: Recording, tmp_path: Path) -> None:
    counts = logical_count(choose(recording.path))
    assert counts.shape == (1, 7, 12)
    assert counts[0, [1, 2, 4]].tolist() == naive(recording).tolist()
    assert not counts[0, [0, 3, 5, 6]].any()
    write_json("logical_count", counts, tmp_path / "counts.json")
    read = json.loads((tmp_path / "counts.json").read_text())
    assert read == {"logical_count": counts.tolist()}


def test_layers_end_with_the_last_recorded_one_where_nobody_knows(tmp_path: Path) -> None:
    recording = record(tmp_path / "trace", 0, layers=LAYERS)
    assert logical_count(choose(recording.path)).shape == (1, 5, 12)


@pytest.mark.parametrize("number", [3, 100_000])
def test_numbers_of_layers_that_cannot_be_are_refused(tmp_path: Path, number: int) -> None:
    run = {"model_facts": {"num_layers": number}}
    recording = record(tmp_path / "trace", 0, layers=LAYERS, num_prompts=3, run=run)
    with pytest.raises(UsageError, match=f"{number} layers, and layer 4 was recorded"):
        logical_count(choose(recording.path))


def test_layers_cannot_be_left_out_of_a_logical_count(recording: Recording) -> None:
    with pytest.raises(UsageError, match="--format eplb for some layers"):
        logical_count(choose(recording.path, layers="1"))


def test_layers_that_differ_have_no_matrix(tmp_path: Path) -> None:
    recording = record(tmp_path / "trace", 0, num_prompts=3)
    with pytest.raises(UsageError, match=r"layer 1: 8, layer 2: 256"):
        expert_loads(choose(recording.path))
    assert expert_loads(choose(recording.path, layers="2")).shape == (1, 256)


def test_zero_experts_need_no_place(tmp_path: Path) -> None:
    layers = [LayerSpec(layer=0, num_experts=6, top_k=2, facts={"num_zero_experts": 2})]
    with TraceWriter(tmp_path / "trace", layers=layers) as writer:
        writer.add([np.array([[0, 5], [3, 4], [3, 1]])])
    assert expert_loads(choose(tmp_path / "trace")).tolist() == [[1, 1, 0, 2]]


def test_a_trace_of_counts_is_enough(tmp_path: Path) -> None:
    recording = record(tmp_path / "trace", 2, layers=LAYERS, capture="counts", share=False)
    assert expert_loads(choose(recording.path)).tolist() == naive(recording).tolist()


def test_torch_reads_what_is_written(recording: Recording, tmp_path: Path) -> None:
    """As SGLang does: without pickle, steps summed, each layer rebalanced."""
    torch = pytest.importorskip("torch")
    from moe_probe.cli.export import _torch_save

    path = tmp_path / "counts.pt"
    _torch_save()("logical_count", logical_count(choose(recording.path)), path)
    read = torch.load(path, weights_only=True, map_location="cpu")
    assert list(read) == ["logical_count"]
    weight_LN = read["logical_count"].sum(dim=0).float()
    assert weight_LN.shape == (7, 12)
    placed, _, _ = rebalance_experts(weight_LN.numpy(), 16, 4, 2, 8)
    assert [set(row) for row in placed] == [set(range(12))] * 7
