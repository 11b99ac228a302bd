"""The compiled loops do what the plain ones do, on traces large enough to overflow small tables.

Shape suffixes: T tokens, K slots, N experts of a layer.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe_probe.analysis.accumulators.base import LayerAccumulator
from moe_probe.analysis.accumulators.counts import Counts
from moe_probe.analysis.accumulators.gaps import Gaps
from moe_probe.analysis.accumulators.locality import BatchStats
from moe_probe.analysis.kernels import COMPILE_FROM, kernels_for, plain
from moe_probe.analysis.orders import Order
from moe_probe.analysis.pieces import Pieces
from moe_probe.analysis.rules import Rule
from moe_probe.analysis.scan import scan
from moe_probe.analysis.source import Source
from tests.analysis.accumulators.test_merge import KINDS, assert_same
from tests.analysis.streams import make_stream

pytestmark = pytest.mark.compiled


@pytest.fixture(scope="module")
def compiled() -> Any:
    """The loops, which load the compiler: not before the first test that needs them."""
    return import_module("moe_probe.analysis.kernels.compiled")


@pytest.mark.parametrize("seed", [0, 1])
def test_every_accumulator(tmp_path: Path, compiled: Any, seed: int) -> None:
    source = Source(make_stream(tmp_path / "trace", seed, documents=90)[0])
    kinds: list[tuple[Any, dict[str, Any]]] = [*KINDS, (BatchStats, {})]

    def filled(kernels: Any, threads: int) -> list[LayerAccumulator]:
        found = [kind(source.layers, Rule.UNIQUE, source.index, **more) for kind, more in kinds]
        scan(source, found, kernels=kernels, threads=threads)
        return found

    expected, found = filled(plain, 1), filled(compiled, 3)
    for one, other in zip(found, expected, strict=True):
        if one.kind in ("gaps", "batches"):
            continue
        assert_same(one, other)
    stats = [found[-1].arrays[1]["stats_B4"], expected[-1].arrays[1]["stats_B4"]]
    assert stats[0][0, 0] > 1
    np.testing.assert_allclose(stats[0], stats[1], rtol=1e-12)
    _assert_same_runs(compiled, found, expected)


def _assert_same_runs(compiled: Any, found: list[Any], expected: list[Any]) -> None:
    gaps = [next(a for a in side if isinstance(a, Gaps)) for side in (found, expected)]
    counts = next(a for a in found if isinstance(a, Counts))
    for layer in gaps[0].layers:
        counts_N = counts.layer(layer).counts_N
        for name in ("canonical", "execution", "request-local", "shuffle-docs:5"):
            order = Order.parse(name)
            runs = gaps[0].runs(layer, order, counts_N, compiled)
            for field, value in vars(gaps[1].runs(layer, order, counts_N, plain)).items():
                assert np.array_equal(getattr(runs, field), value), (layer, name, field)
        orders = [Order("shuffle-docs", seed) for seed in range(3)]
        for one, other in zip(
            gaps[0].longest(layer, orders, counts_N, compiled),
            gaps[1].longest(layer, orders, counts_N, plain),
            strict=True,
        ):
            assert np.array_equal(one, other)


def pieces_of(length: list[int], weight: list[int]) -> Pieces:
    stop_P = np.cumsum(length)
    start_P = stop_P - length
    zeros_P = np.zeros(len(length), np.int64)
    return Pieces(
        start_P, stop_P, start_P, np.array(weight), zeros_P, zeros_P, zeros_P.astype(bool)
    )


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("length", [[200_001], [65_535, 1, 70_000], [3, 65_533, 2]])
def test_pair_counts_beyond_what_their_scratch_holds(
    compiled: Any, length: list[int], dtype: Any
) -> None:
    """Every token has the same pair, so that 16 bits overflow; ids beyond the layer do no harm."""
    ids_TK = np.tile(np.array([1, 0, 200], dtype), (sum(length), 1))
    pieces = pieces_of(length, [1 + (number % 2) * 4 for number in range(len(length))])
    found_NN = np.zeros((3, 3), np.int64)
    compiled.count_pairs(found_NN, ids_TK, pieces)
    expected_NN = np.zeros((3, 3), np.int64)
    expected_NN[1, 0] = pieces.tokens_P.sum()
    assert found_NN.tolist() == expected_NN.tolist()


def test_rows_that_look_like_a_fault(compiled: Any) -> None:
    ids_TK = np.array([[0, 0], [0, 1], [5, 5], [255, 255], [1, 0], [255, 9], [3, 2]], np.uint8)
    for none_id, expected in ((255, [2, 1, 1, 2]), (-1, [3, 1, 1, 3])):
        for kernels in (plain, compiled):
            assert kernels.inspect_rows(ids_TK, 5, none_id).tolist() == expected


def test_longest_absence(compiled: Any) -> None:
    rng = np.random.default_rng(0)
    counts_CN = (rng.random((70, 30)) < 0.1).astype(np.uint8)
    order_D = rng.permutation(70)[:50]
    expected = plain.longest_absence(counts_CN, order_D)
    assert np.array_equal(compiled.longest_absence(counts_CN, order_D), expected)


def test_ids_that_the_layer_lacks_are_not_counted(compiled: Any) -> None:
    ids_TK = np.array([[0, 9], [65_535, 1], [1, 65_535]], np.uint16)
    pieces = pieces_of([3], [2])
    for kernels in (plain, compiled):
        table_GN, slots_KN = np.zeros((1, 2), np.int64), np.zeros((2, 2), np.int64)
        kernels.count_rows(table_GN, ids_TK, pieces, np.zeros(1, np.int64))
        kernels.count_slots(slots_KN, ids_TK, pieces)
        assert table_GN.tolist() == [[2, 4]]
        assert slots_KN.tolist() == [[2, 2], [0, 2]]


def test_small_traces_do_not_wait_for_a_compiler(compiled: Any) -> None:
    assert kernels_for(COMPILE_FROM - 1) is plain
    assert kernels_for(COMPILE_FROM) is compiled
