"""Rows keep every id and weight, whatever the number of experts and slots.

Shape suffixes: T tokens, K slots, B bytes of one token's ids.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_probe.errors import TraceError
from moe_probe.trace import LayerSpec, RowLayout, TraceWriter, open_trace
from tests.trace.recordings import random_ids

IDENTITY = ["sequence_id", "position", "token_id", "forward_pass"]


@st.composite
def layer_lists(draw: st.DrawFn) -> list[LayerSpec]:
    indices = draw(st.lists(st.integers(0, 200), min_size=1, max_size=4, unique=True))
    layers = []
    for index in sorted(indices):
        num_experts = draw(st.sampled_from([2, 8, 255, 256, 257, 384, 1000]))
        top_k = draw(st.integers(1, min(num_experts, 10)))
        empty_slots = draw(st.booleans())
        layers.append(
            LayerSpec(
                layer=index,
                num_experts=num_experts,
                top_k=top_k,
                empty_slots=empty_slots,
                scalars=draw(st.booleans()),
            )
        )
    return layers


@settings(max_examples=40, deadline=None)
@given(layers=layer_lists(), tokens=st.lists(st.integers(1, 30), max_size=6), seed=st.integers(0))
def test_everything_comes_back(layers: list[LayerSpec], tokens: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    ids = [[random_ids(rng, spec, count) for spec in layers] for count in tokens]
    weights = [[rng.random(x.shape).astype(np.float16) for x in prompt] for prompt in ids]
    scored = [spec for spec in layers if spec.scalars]
    scalars = [[rng.normal(size=(count, 3)).astype(np.float16) for _ in scored] for count in tokens]
    with TemporaryDirectory() as folder:
        path = Path(folder) / "trace"
        with TraceWriter(path, layers=layers, capture="weights", segment_tokens=50) as writer:
            for prompt, weight, scalar in zip(ids, weights, scalars, strict=True):
                token_ids = np.arange(len(prompt[0]))
                writer.add(prompt, topk_weights=weight, router_scalars=scalar, token_ids=token_ids)
        trace = open_trace(path)
        blocks = list(trace.scan(weights=True))
        assert trace.layers == {spec.layer: spec for spec in layers}
        assert [len(x) for x in blocks] == _part_lengths(tokens, 50)
        for index, spec in enumerate(layers):
            none = np.iinfo(spec.dtype).max
            for k, prompt in enumerate(ids):
                expected = np.where(prompt[index] < 0, none, prompt[index])
                got = [b.topk_ids(spec.layer)[b.sequence_id_T == k] for b in blocks]
                assert np.concatenate(got).tolist() == expected.tolist()
                kept = [b.topk_weights(spec.layer)[b.sequence_id_T == k] for b in blocks]
                assert np.concatenate(kept).tolist() == weights[k][index].tolist()
        for index, spec in enumerate(scored):
            for k, prompt in enumerate(scalars):
                got = [b.router_scalars(spec.layer)[b.sequence_id_T == k] for b in blocks]
                assert np.concatenate(got).tolist() == prompt[index].tolist()


def _part_lengths(tokens: list[int], capacity: int) -> list[int]:
    parts: list[int] = []
    for count in tokens:
        if not parts or parts[-1] + count > capacity:
            parts.append(0)
        parts[-1] += count
    return parts


@pytest.mark.parametrize(
    ("num_experts", "empty_slots", "itemsize", "none_id"),
    [(256, False, 1, None), (257, False, 2, None), (255, True, 1, 255), (256, True, 2, 65_535)],
)
def test_id_width(num_experts: int, empty_slots: bool, itemsize: int, none_id: int | None) -> None:
    spec = LayerSpec(layer=0, num_experts=num_experts, top_k=2, empty_slots=empty_slots)
    assert (spec.itemsize, spec.none_id) == (itemsize, none_id)
    ids_TK = np.array([[num_experts - 1, 0]])
    layout = RowLayout((spec,))
    assert layout.layer_ids(layout.pack([ids_TK]), 0).tolist() == ids_TK.tolist()


@pytest.mark.parametrize("capture", ["counts", "ids"])
def test_scalars_belong_to_weights(tmp_path: Path, capture: str) -> None:
    spec = LayerSpec(layer=3, num_experts=4, top_k=1, scalars=True)
    with TraceWriter(tmp_path / "t", layers=[spec], capture=capture) as writer:
        writer.add([np.zeros((2, 1), int)], router_scalars=[np.ones((2, 3))])
    trace = open_trace(tmp_path / "t")
    assert trace.layers == {3: spec}
    names = {path: pq.read_schema(path).names for path in (tmp_path / "t").glob("routing/*")}
    assert list(names.values()) == ([[*IDENTITY, "L03"]] if capture == "ids" else [])


def test_scalars_lie_where_the_layout_says() -> None:
    flags = [False, True, True, False, True]
    specs = [LayerSpec(layer=i, num_experts=4, top_k=1, scalars=x) for i, x in enumerate(flags)]
    layout = RowLayout(tuple(specs))
    assert (layout.scalar_offsets, layout.num_scalars) == ([0, 0, 3, 6, 6, 9], 9)


def test_uint16_ids_are_little_endian() -> None:
    layout = RowLayout((LayerSpec(layer=3, num_experts=300, top_k=2),))
    assert layout.pack([np.array([[258, 1]])]).tolist() == [[2, 1, 1, 0]]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([[0, 8]], "ids from 0 to 8, but there are 8 experts"),
        ([[-1, 0]], "ids from -1 to 0"),
        ([[0, 1, 2]], r"expected \[T, 2\]"),
    ],
)
def test_ids_the_layer_lacks_are_refused(ids: list[list[int]], message: str) -> None:
    layout = RowLayout((LayerSpec(layer=4, num_experts=8, top_k=2),))
    with pytest.raises(ValueError, match=f"layer 4: .*{message}"):
        layout.pack([np.array(ids)])


def test_impossible_layers_are_refused(tmp_path: Path) -> None:
    twice = [LayerSpec(layer=4, num_experts=8, top_k=2)] * 2
    with pytest.raises(TraceError, match="a layer twice"):
        TraceWriter(tmp_path / "a", layers=twice)
    with pytest.raises(TraceError, match="impossible layer"):
        TraceWriter(tmp_path / "a", layers=[LayerSpec(layer=0, num_experts=2, top_k=3)])
    assert not (tmp_path / "a").exists()
