"""Loads of single forward passes against a loop over their tokens, and against planted ones.

Shape suffixes: T tokens of a document, K slots, N experts of a layer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe_probe.analysis import pass_balance
from moe_probe.analysis.accumulators.pass_loads import BINS, PassLoads
from moe_probe.analysis.kernels import plain
from moe_probe.analysis.reading.passes import PassTable
from moe_probe.analysis.reading.rules import Rule
from moe_probe.analysis.reading.source import Source
from moe_probe.analysis.scan import scan
from moe_probe.errors import UsageError
from moe_probe.trace import LayerSpec, TraceWriter, open_trace

LAYERS = (
    LayerSpec(layer=0, num_experts=6, top_k=2),
    LayerSpec(layer=2, num_experts=260, top_k=3),
    LayerSpec(layer=3, num_experts=10, top_k=2, empty_slots=True),
    LayerSpec(layer=5, num_experts=5, top_k=1),
)
DEVICES = (1, 2, 3)
Loads = dict[tuple[int, int], dict[int, list[int]]]
"""Selections of each (rank, pass), by layer, and its tokens as layer -1."""


def make(path: Path, seed: int) -> Loads:
    """Write documents of two ranks whose tokens ran in passes that documents share."""
    rng = np.random.default_rng(seed)
    loads: Loads = defaultdict(dict)
    with TraceWriter(path, layers=list(LAYERS), segment_tokens=48) as writer:
        for number in range(20):
            rank, length = number % 2, int(rng.integers(1, 40))
            pass_T = np.sort(rng.integers(0, 3 if number < 8 else 25, length))
            ids = []
            for spec in LAYERS:
                chance_TN = rng.random((length, spec.num_experts)) ** (1 + number % 3)
                ids_TK = np.argsort(-chance_TN, axis=1)[:, : spec.top_k]
                if spec.empty_slots:
                    ids_TK[rng.random(ids_TK.shape) < 0.6] = -1
                ids.append(ids_TK)
            for place, key in enumerate((rank, int(p)) for p in pass_T):
                loads[key].setdefault(-1, [0])[0] += 1
                for spec, ids_TK in zip(LAYERS, ids, strict=True):
                    counts = loads[key].setdefault(spec.layer, [0] * spec.num_experts)
                    for expert in ids_TK[place].tolist():
                        counts[expert] += expert >= 0
            writer.add(ids, task="t", doc_id=number, rank=rank, forward_passes=pass_T)
    return loads


def ratios(loads: Loads, layer: int, devices: int) -> Iterator[tuple[int, int, int]]:
    """Tokens, and sum and max of the devices' loads, of every pass that selects anything."""
    for counts in loads.values():
        size = len(counts[layer]) // devices
        sums = [sum(counts[layer][size * d : size * (d + 1)]) for d in range(devices)]
        if any(sums):
            yield counts[-1][0], sum(sums), max(sums)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_against_a_loop(tmp_path: Path, seed: int) -> None:
    loads = make(tmp_path / "trace", seed)
    source = Source(open_trace(tmp_path / "trace"))
    assert len(source.parts) > 5
    facts: Any = (source.layers, Rule.UNIQUE, source.index)
    found = PassLoads(*facts, table=PassTable.of(source, Rule.UNIQUE), devices=DEVICES)
    scan(source, [found], kernels=plain)
    table = pass_balance(tmp_path / "trace", devices=DEVICES)
    rows_of = {(r["layer"], r["devices"], r["tokens_from"]): r for r in table.to_dict("records")}
    rows = 0
    for spec in LAYERS:
        arrays = found.arrays[spec.layer]
        assert not len(arrays["key_P"]), "every pass is complete"
        for place, devices in enumerate((spec.num_experts, *DEVICES)):
            if spec.num_experts % devices:
                assert not arrays["ratio_DB3"][place].any()
                continue
            passes = list(ratios(loads, spec.layer, devices))
            for octave in {tokens.bit_length() - 1 for tokens, _, _ in passes}:
                here = [p for p in passes if p[0].bit_length() - 1 == octave]
                ratio = np.array([most * devices / total for _, total, most in here])
                assert arrays["passes_B2"][octave].tolist() == [len(here), sum(p[0] for p in here)]
                places = [min(BINS * s // (devices * m), BINS - 1) for _, s, m in here]
                bins = np.bincount(places, minlength=BINS)
                assert arrays["even_DBH"][place, octave].tolist() == bins.tolist()
                row, rows = rows_of[spec.layer, devices, 1 << octave], rows + 1
                assert row["max_vio"] == pytest.approx(ratio.mean() - 1, abs=1e-12)
                sd = ratio.std(ddof=1) if len(here) > 1 else np.nan
                assert row["max_vio_sd"] == pytest.approx(sd, abs=1e-6, nan_ok=True)
                assert row["balancedness"] == pytest.approx((1 / ratio).mean(), abs=1e-12)
                low, middle = np.quantile(1 / ratio, (0.1, 0.5), method="inverted_cdf")
                assert row["balancedness_p10"] == pytest.approx(low, abs=0.5 / BINS + 1e-9)
                assert row["balancedness_p50"] == pytest.approx(middle, abs=0.5 / BINS + 1e-9)
                assert np.isnan(row["max_vio_null"]) == spec.empty_slots
    assert rows == len(table) > 30


def test_fair_passes_are_as_even_as_chance_says(tmp_path: Path) -> None:
    """And experts of one device that always come together are not."""
    rng = np.random.default_rng(0)
    layers = [LayerSpec(layer=n, num_experts=16, top_k=4) for n in range(2)]
    with TraceWriter(tmp_path / "trace", layers=layers) as writer:
        for number in range(250):
            size = (1, 6, 50)[number % 3]
            fair_TK = np.argsort(rng.random((size, 16)), axis=1)[:, :4]
            block_TK = 4 * rng.integers(0, 4, (size, 1)) + np.arange(4)
            writer.add([fair_TK, block_TK], doc_id=number, forward_passes=number)
    table = pass_balance(tmp_path / "trace", devices=[4])
    assert table.attrs["moe_probe"]["rule"] == "unique"
    assert table.attrs["moe_probe"]["order"] is None
    fair = table[table["layer"] == 0]
    assert fair["passes"].tolist() == [84, 83, 83] * 2
    assert fair["tokens_mean"].tolist() == [1, 6, 50] * 2
    error = fair["max_vio_sd"] * (1 / fair["passes"] + 1 / 200) ** 0.5
    off = fair["max_vio"].to_numpy() - fair["max_vio_null"].to_numpy()
    assert (np.abs(off) <= 4 * error.to_numpy() + 1e-12).all()
    even, null = fair["balancedness"].to_numpy(), fair["balancedness_null"].to_numpy()
    assert even == pytest.approx(null, rel=0.1)
    alone = fair[fair["devices"] == 16].to_dict("records")[0]
    assert [alone[n] for n in ("tokens_from", "max_vio", "max_vio_null")] == [1, 3, 3]
    together = table[(table["layer"] == 1) & (table["devices"] == 4)]
    assert together["max_vio"].iloc[0] == 3
    assert (together["max_vio"] > 1.3 * together["max_vio_null"]).all()


def test_chance_knows_routers_that_take_groups_first(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    limited = LayerSpec(
        layer=0, num_experts=16, top_k=4, facts={"num_groups": 4, "groups_per_token": 2}
    )
    free = LayerSpec(layer=1, num_experts=16, top_k=4)
    with TraceWriter(tmp_path / "trace", layers=[limited, free]) as writer:
        for number in range(300):
            # Of two random groups of four, the four experts with the largest scores.
            score_TN = rng.random((6, 16))
            group_TD = np.argsort(rng.random((6, 4)), axis=1) < 2
            score_TN[~np.repeat(group_TD, 4, axis=1)] = -1
            ids_TK = np.argsort(-score_TN, axis=1)[:, :4]
            writer.add([ids_TK, ids_TK], doc_id=number, forward_passes=number)
    table = pass_balance(tmp_path / "trace", devices=[2, 4])
    rows_of = {(row["layer"], row["devices"]): row for row in table.to_dict("records")}
    for devices in (16, 4, 2):
        known, unknown = (rows_of[layer, devices] for layer in (0, 1))
        error = known["max_vio_sd"] * (1 / 300 + 1 / 200) ** 0.5
        assert abs(known["max_vio"] - known["max_vio_null"]) <= 3 * error
        # The inverse of a ratio above 1 varies less than the ratio.
        assert abs(known["balancedness"] - known["balancedness_null"]) <= 3 * error
    assert known["max_vio_null"] > 1.2 * unknown["max_vio_null"]


def test_chance_of_few_devices_is_its_closed_form(tmp_path: Path) -> None:
    """Two devices: the difference of their loads is normal, with hypergeometric tokens."""
    rng = np.random.default_rng(2)
    sizes, experts, top_k = (64, 128, 256, 512, 1024, 2048, 4096), 64, 6
    with TraceWriter(
        tmp_path / "trace", layers=[LayerSpec(layer=0, num_experts=experts, top_k=top_k)]
    ) as writer:
        for number, size in enumerate(sizes):
            ids_TK = np.argsort(rng.random((size, experts)), axis=1)[:, :top_k]
            writer.add([ids_TK], doc_id=number, forward_passes=number)
    table = pass_balance(tmp_path / "trace", devices=[2]).query("devices == 2")
    sd = [((experts - top_k) / (experts - 1) / (top_k * size)) ** 0.5 for size in sizes]
    assert table["tokens_from"].tolist() == list(sizes)
    assert table["max_vio_null"].tolist() == pytest.approx(
        [value * (2 / np.pi) ** 0.5 for value in sd], rel=0.08
    )


def test_traces_that_do_not_say(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "none", layers=[LAYERS[3]]) as writer:
        writer.add([np.array([[0]])])
    with pytest.raises(UsageError, match="This needs to know which forward pass ran each token"):
        pass_balance(tmp_path / "none")
    with TraceWriter(tmp_path / "twice", layers=[LAYERS[3]]) as writer:
        writer.add([np.array([[0], [1]])], multiplicity=2, forward_passes=0)
    with pytest.raises(UsageError, match="several of them ran, and the rule raw counts"):
        pass_balance(tmp_path / "twice", rule="raw")
    with pytest.raises(ValueError, match="0 devices: a whole number, at least one"):
        pass_balance(tmp_path / "twice", devices=[0])
    assert len(pass_balance(tmp_path / "twice", rule="decision", devices=[]))
