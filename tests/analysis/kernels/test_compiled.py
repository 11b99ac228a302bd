"""The compiled loops do what the plain ones do, on traces large enough to overflow small tables.

Shape suffixes: T tokens, K slots, N experts of a layer.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe_probe.analysis.accumulators.base import LayerAccumulator
from moe_probe.analysis.accumulators.counts import Counts
from moe_probe.analysis.accumulators.gaps import Gaps
from moe_probe.analysis.accumulators.locality import BatchStats
from moe_probe.analysis.kernels import COMPILE_FROM, LOAD_FROM, kernels_for, plain
from moe_probe.analysis.kernels.tables import (
    CountTables,
    GapTables,
    OverlapTables,
    Tables,
)
from moe_probe.analysis.reading.orders import Order
from moe_probe.analysis.reading.pieces import Pieces
from moe_probe.analysis.reading.rules import Rule
from moe_probe.analysis.reading.source import Source
from moe_probe.analysis.scan import scan
from tests.analysis.accumulators.shards import assert_same, made
from tests.analysis.streams import make_stream

pytestmark = pytest.mark.compiled


@pytest.fixture(scope="module")
def compiled() -> Any:
    """The loops, which load the compiler: not before the first test that needs them."""
    return import_module("moe_probe.analysis.kernels.compiled")


@pytest.mark.parametrize("seed", [0, 1])
def test_every_accumulator(tmp_path: Path, compiled: Any, seed: int) -> None:
    source = Source(make_stream(tmp_path / "trace", seed, documents=90)[0])

    def filled(kernels: Any, threads: int) -> list[LayerAccumulator]:
        # Batches begin with the stream, and within batches of all sizes.
        usual = BatchStats(source.layers, Rule.UNIQUE, source.index)
        found = [usual, *made(source, Rule.UNIQUE, before=127)]
        scan(source, found, kernels=kernels, threads=threads)
        return found

    expected, found = filled(plain, 1), filled(compiled, 3)
    counts = next(accumulator for accumulator in expected if isinstance(accumulator, Counts))
    for one, other in zip(found, expected, strict=True):
        assert_same(one, other, counts)
    for batches in (a for a in found if isinstance(a, BatchStats)):
        assert batches.arrays[1]["stats_B5"][0, 0] > 1
    assert batches.arrays[1]["head_BN"].sum(axis=1).tolist() == [6, 26, 106]
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
@pytest.mark.parametrize("weights", [(1, 1), (1, 5)])
@pytest.mark.parametrize("length", [[200_001], [65_535, 1, 70_000], [3, 65_533, 2]])
def test_pair_counts_beyond_what_their_scratch_holds(
    compiled: Any, length: list[int], weights: tuple[int, int], dtype: Any
) -> None:
    """Every token has the same pair, so that 16 bits overflow; ids beyond the layer do no harm."""
    ids_TK = np.tile(np.array([1, 0, 200], dtype), (sum(length), 1))
    pieces = pieces_of(length, [weights[number % 2] for number in range(len(length))])
    tables = Tables(3, pairs=np.zeros((3, 3), np.int64))
    compiled.fill(tables, ids_TK, pieces)
    tokens = int(pieces.tokens_P.sum())
    assert tables.pairs is not None
    assert tables.pairs.tolist() == [[0, tokens, 0], [tokens, 0, 0], [0, 0, 0]]


LAGS = (1, 2, 64)
WINDOWS = (1, 30, 3000)


def random_pieces(rng: np.random.Generator, tokens: int, clusters: int) -> Pieces:
    """Ragged pieces with rows between them that do not count, of clusters that come again."""
    bounds = np.unique(rng.integers(0, tokens, tokens // 60))
    start_P, stop_P = bounds[:-1], bounds[1:] - rng.integers(0, 2, len(bounds) - 1)
    start_P, stop_P = start_P[stop_P > start_P], stop_P[stop_P > start_P]
    cluster_P = np.sort(rng.integers(0, clusters, len(start_P)))
    cluster_P[rng.random(len(cluster_P)) < 0.1] = 0
    joins_P = np.zeros(len(start_P))
    joins_P[1:] = (start_P[1:] == stop_P[:-1]) & (cluster_P[1:] == cluster_P[:-1])
    return Pieces(start_P, stop_P, start_P, np.ones_like(start_P), start_P % 7, cluster_P, joins_P)


def random_tables(num_experts: int, slots: int, pieces: Pieces, tokens: int) -> Tables:
    clusters, rng = int(pieces.cluster_P.max()) + 1, np.random.default_rng(0)
    return Tables(
        num_experts,
        counts=CountTables(np.zeros((7, num_experts), np.int64), pieces.stratum_P),
        documents=np.zeros((clusters, num_experts), np.uint16),
        slots=np.zeros((slots, num_experts), np.int64),
        pairs=np.zeros((num_experts, num_experts), np.int64),
        overlaps=OverlapTables(
            np.zeros((3, 3, 5), np.int64),
            np.zeros((3, 3, 5), np.int64),
            pieces.stratum_P % 3,
            np.array(LAGS),
            rng.integers(0, 8, tokens, np.uint8),
        ),
        gaps=GapTables(
            np.zeros((clusters, num_experts), np.uint16),
            np.zeros((clusters, num_experts), np.uint16),
            np.zeros(clusters, np.int64),
            np.zeros(num_experts, np.int64),
            np.zeros(num_experts, np.int64),
            np.zeros((3, 3, num_experts), np.int64),
            np.zeros(65, np.int64),
            np.array(WINDOWS),
        ),
    )


@pytest.mark.parametrize("fault", ["none", "empty slots", "an expert twice"])
@pytest.mark.parametrize(
    ("num_experts", "slots", "dtype"),
    [
        (250, 8, np.uint8),
        (160, 6, np.uint8),
        (60, 4, np.uint8),
        (8, 2, np.uint8),
        (300, 10, np.uint16),
        (5, 1, np.uint8),
    ],
)
def test_blocks_of_rows(
    compiled: Any, num_experts: int, slots: int, dtype: Any, fault: str
) -> None:
    """Several blocks of tokens, which cut documents and pieces apart, and two parts of a trace."""
    rng, tokens = np.random.default_rng(slots), 20_000
    popular_N = rng.dirichlet(np.full(num_experts, 0.5))
    scores_TN = np.log(popular_N) + rng.gumbel(size=(tokens, num_experts))
    ids_TK = np.argsort(-scores_TN, axis=1)[:, :slots].astype(dtype)
    if fault == "empty slots":
        ids_TK[rng.random((tokens, slots)) < 0.2] = np.iinfo(dtype).max
    if fault == "an expert twice":
        ids_TK[tokens // 2] = ids_TK[tokens // 2, 0]
    pieces = random_pieces(rng, tokens, 50)
    expected, found = (random_tables(num_experts, slots, pieces, tokens) for _ in range(2))
    for _ in range(2):
        plain.fill(expected, ids_TK, pieces)
        compiled.fill(found, ids_TK, pieces)
    for field in ("documents", "slots", "pairs"):
        assert np.array_equal(getattr(found, field), getattr(expected, field)), field
    for field in ("counts", "overlaps", "gaps"):
        one, other = getattr(found, field), getattr(expected, field)
        for name in one._fields:
            assert np.array_equal(getattr(one, name), getattr(other, name)), (field, name)
    assert expected.gaps is not None
    assert expected.gaps.histogram_H.sum() > tokens


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
        counts = CountTables(table_GN, np.zeros(1, np.int64))
        kernels.fill(Tables(2, counts=counts, slots=slots_KN), ids_TK, pieces)
        assert table_GN.tolist() == [[2, 4]]
        assert slots_KN.tolist() == [[2, 2], [0, 2]]


def test_small_traces_do_not_wait_for_a_compiler(
    compiled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for known in (False, True):
        monkeypatch.setattr(compiled, "were_compiled", lambda known=known: known)
        assert kernels_for(LOAD_FROM - 1) is plain
        assert kernels_for(LOAD_FROM) is kernels_for(COMPILE_FROM - 1)
        assert kernels_for(LOAD_FROM) is (compiled if known else plain)
        assert kernels_for(COMPILE_FROM) is compiled


def test_loops_are_known_to_be_compiled_once_they_are(tmp_path: Path) -> None:
    script = (
        "import numpy as np; from moe_probe.analysis.kernels import compiled, tables;"
        "from tests.analysis.kernels.test_compiled import pieces_of;"
        "print(compiled.were_compiled());"
        "slots = tables.Tables(2, slots=np.zeros((1, 2), np.int64));"
        "gaps = tables.GapTables(*(np.zeros(s, np.int64) for s in"
        " ((1, 2), (1, 2), 1, 2, 2, (0, 3, 2), 65, 0)));"
        "slots.gaps = gaps;"
        "compiled.fill(slots, np.zeros((1, 1), np.uint8), pieces_of([1], [1]));"
        "print(compiled.were_compiled())"
    )
    found = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)},
        check=True,
        capture_output=True,
        text=True,
    )
    assert found.stdout.split() == ["False", "True"]


def test_waiting_for_the_compiler_is_explained_once(tmp_path: Path) -> None:
    script = (
        "import numpy as np; from moe_probe.analysis.kernels import compiled;"
        "compiled.longest_absence(np.zeros((3, 4), np.uint8), np.arange(3))"
    )

    def run() -> str:
        return subprocess.run(
            [sys.executable, "-c", script],
            env=os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)},
            check=True,
            capture_output=True,
            text=True,
        ).stderr

    assert run().count("Compiling") == 1
    assert run() == ""
