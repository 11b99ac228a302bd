"""The table `placement` of a trace against loops over its documents.

Shape suffixes: N experts of a layer.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from moe_probe.analysis import Analysis, analyse
from moe_probe.analysis.reading.index import TraceIndex
from moe_probe.analysis.statistics.clusters import halves
from moe_probe.trace import LayerSpec, TraceWriter

SUBJECTS = ("a", "b", "c")
EXPERTS = {1: 8, 4: 16}
HOT = {"a": [0, 1], "b": [0, 4], "c": [5, 7]}
"""Experts that a subject uses more: those of a lie on one device."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Analysis, dict[int, np.ndarray]]:
    """An analysis, and for every layer the counts by subject and document [3, 6, N]."""
    rng = np.random.default_rng(0)
    specs = [LayerSpec(layer=layer, num_experts=n, top_k=1) for layer, n in EXPERTS.items()]
    counts = {layer: np.zeros((3, 6, n), np.int64) for layer, n in EXPERTS.items()}
    path: Path = tmp_path_factory.mktemp("placement") / "trace"
    with TraceWriter(path, layers=specs) as writer:
        for place, subject in enumerate(SUBJECTS):
            for document in range(6):
                ids = []
                for layer, number in EXPERTS.items():
                    weight_N = 1.0 + 6 * np.isin(np.arange(number), HOT[subject])
                    ids.append(rng.choice(number, (40, 1), p=weight_N / weight_N.sum()))
                    counts[layer][place, document] = np.bincount(ids[-1][:, 0], minlength=number)
                writer.add(ids, subject=subject, doc_id=10 * place + document, prefix_end=0)
    return analyse(path, shuffles=2, replicates=10, permutations=2), counts


def placed(counts_N: np.ndarray, devices: int) -> list[int]:
    device, load = [-1] * len(counts_N), np.zeros(devices)
    for expert in sorted(range(len(counts_N)), key=lambda e: (-counts_N[e], e)):
        room = [d for d in range(devices) if device.count(d) < len(counts_N) // devices]
        device[expert] = min(room, key=lambda d: (load[d], d))
        load[device[expert]] += counts_N[expert]
    return device


def balance(counts_N: np.ndarray, device: list[int], devices: int) -> float:
    loads = [counts_N[np.array(device) == d].sum() for d in range(devices)]
    return float(np.mean(loads) / max(loads))


def test_every_row_is_the_mean_of_the_layers(
    made: tuple[Analysis, dict[int, np.ndarray]],
) -> None:
    found, counts = made
    table = found.table("placement")
    assert sorted(set(table["devices"])) == found.table("devices")["devices"].tolist() == [2, 4]
    assert len(table) == 2 * (3 + 2 * 3 + 9)
    for row in table.to_dict("records"):
        values = []
        for layer, number in EXPERTS.items():
            by_subject, devices = (
                dict(zip(SUBJECTS, counts[layer].sum(axis=1), strict=True)),
                row["devices"],
            )
            everything = sum(by_subject.values())
            shown = by_subject.get(row["subject"], everything)
            if row["fit"] == "contiguous":
                values.append(
                    balance(shown, [e * devices // number for e in range(number)], devices)
                )
            elif row["fit"] == "other half":
                half_D = halves(TraceIndex.of(found.sums.trace).clusters.keys)
                sides = [counts[layer].reshape(18, -1)[half_D == h].sum(axis=0) for h in (0, 1)]
                for one, other in (sides, sides[::-1]):
                    values.append(balance(other, placed(one, devices), devices))
            else:
                fitted = {
                    "all": everything,
                    "other subjects": everything - shown,
                    "subject": by_subject.get(row["fit_subject"]),
                }[row["fit"]]
                values.append(balance(shown, placed(fitted, devices), devices))
        assert row["balancedness"] == pytest.approx(np.mean(values), rel=1e-6), row


def test_placements_of_one_subject_do_not_carry_over(
    made: tuple[Analysis, dict[int, np.ndarray]],
) -> None:
    table = made[0].table("placement")
    pairs = table[(table["devices"] == 4) & (table["fit"] == "subject")]
    matrix = pairs.pivot(index="fit_subject", columns="subject", values="balancedness")
    for_a, _, for_c = matrix["a"].tolist()
    assert for_a > for_c + 0.1
    assert ((table["balancedness_null"] > 0.5) & (table["balancedness_null"] < 1)).all()


def test_one_subject_has_no_transfer(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    with TraceWriter(tmp_path / "trace", layers=[LayerSpec(layer=0, num_experts=8, top_k=2)]) as w:
        for number in range(6):
            ids_TK = rng.random((20, 8)).argsort(axis=1)[:, :2]
            w.add([ids_TK], subject="a", doc_id=number, prefix_end=0)
    table = analyse(tmp_path / "trace", shuffles=2, replicates=10, permutations=2).table(
        "placement"
    )
    assert table["fit"].tolist() == ["contiguous", "all", "other half"] * 2
    assert (table["subject"] == "").all()
    assert table["balancedness"].between(0.25, 1).all()


def test_fair_routing_is_as_even_as_the_nulls_say(tmp_path: Path) -> None:
    """One-token documents, against halves drawn anew; contiguous experts as in `devices`."""
    rng, tokens = np.random.default_rng(7), 400

    def draw(number: int) -> np.ndarray:
        return rng.random((number, 8)).argsort(axis=1)[:, :2]

    with TraceWriter(tmp_path / "trace", layers=[LayerSpec(layer=0, num_experts=8, top_k=2)]) as w:
        for number, ids_TK in enumerate(np.split(draw(tokens), tokens)):
            w.add([ids_TK], subject="ab"[number % 2], doc_id=number)
    found = analyse(tmp_path / "trace", shuffles=2, replicates=10, permutations=2)
    table = found.table("placement").query("subject == ''").set_index(["fit", "devices"])
    null, values = table["balancedness_null"], defaultdict(list)
    for _ in range(300):
        one_N, other_N = (np.bincount(draw(tokens // 2).ravel(), minlength=8) for _ in range(2))
        for devices in (2, 4):
            values[devices].append(balance(other_N, placed(one_N, devices), devices))
    for row in found.table("devices").to_dict("records"):
        devices = row["devices"]
        assert null["contiguous", devices] == pytest.approx(row["vllm_avg_null"], abs=1e-12)
        assert null["other half", devices] == pytest.approx(np.mean(values[devices]), rel=0.01)
        assert null["other half", devices] < null["contiguous", devices] - 0.008
