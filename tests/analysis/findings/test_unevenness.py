"""The sentence on unevenness: what it finds, what it never says, and what it cannot tell.

Shape suffixes: D documents, N experts, T tokens, K slots, B replicates.
"""

from __future__ import annotations

import math
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from moe_probe.analysis.findings.headline import load_limits
from moe_probe.analysis.findings.unevenness import unevenness
from moe_probe.analysis.reading.rules import Rule
from moe_probe.analysis.results import TABLES, Analysis, analyse
from moe_probe.analysis.statistics.clusters import poisson_weights, replicate_sums
from moe_probe.analysis.statistics.multiplicity import layer_test
from moe_probe.trace import LayerSpec, TraceWriter
from tests.analysis.planted import ragged, write

FEW: Any = {"shuffles": 2, "replicates": 40, "permutations": 19}


def planted(path: Path, weight_N: np.ndarray, top_k: int, each: int = 30, seed: int = 5) -> Path:
    """Four subjects; layer 0 is fair, and layer 1 has the weights."""
    names, tokens_D = ragged(subjects=4, each=each, length=100, seed=1)
    shape = len(names), len(weight_N)
    weights = {0: np.ones(shape), 1: np.broadcast_to(weight_N, shape)}
    return write(path, weights, names, tokens_D, top_k=top_k, seed=seed)


def same_documents(path: Path, ids_LTK: list[Any], number: int, **spec: Any) -> Analysis:
    """A trace of documents that all select the same; 16 experts, or `num_experts`."""
    facts = {"num_experts": 16, **spec}
    capture = facts.pop("capture", "ids")
    layers = [
        LayerSpec(layer=n, top_k=np.shape(ids)[1], empty_slots=bool(np.min(ids) < 0), **facts)
        for n, ids in enumerate(ids_LTK)
    ]
    with TraceWriter(path, layers=layers, capture=capture) as writer:
        for doc in range(number):
            writer.add(ids_LTK, task="t", subject="ab"[doc % 2], doc_id=doc)
    return analyse(path, **FEW)


@pytest.mark.parametrize(
    ("experts", "top_k", "fewer", "weight"), [(256, 8, 10, 0.0), (64, 6, 1, 0.0), (64, 6, 6, 0.5)]
)
def test_little_used_experts_are_uneven_load(
    tmp_path: Path, experts: int, top_k: int, fewer: int, weight: float
) -> None:
    """MaxVio of both layers is that of chance, and was all that was looked at."""
    weight_N = np.where(np.arange(experts) < fewer, weight, 1.0)
    found = analyse(planted(tmp_path / "trace", weight_N, top_k), **FEW)
    text, layers = found.headline, found.layers
    assert text.uneven.startswith(
        "Yes, beyond chance in 1 of 2 layers: CV, the standard deviation of a layer's loads over "
        f"their mean, is {layers['cv'][0]:.3f} (layer 0) to {layers['cv'][1]:.3f} (layer 1); "
        f"random routing gives about {layers['cv_null'].mean():.3f}, and"
    )
    assert layers["cv"][1] > 3 * layers["cv_null"][1]
    assert "of layer 1" in text.least_used
    assert ("No expert is certified" in text.least_used) == (weight > 0)
    assert "no less than chance" not in text.least_used


def test_busy_experts_are_told_by_max_vio(tmp_path: Path) -> None:
    weight_N = np.where(np.arange(64) < 2, 2.0, 1.0)
    text = analyse(planted(tmp_path / "trace", weight_N, 6), **FEW).headline.uneven
    assert text.startswith("Yes, beyond chance in 1 of 2 layers: MaxVio")


def test_many_experts_that_differ_a_little(tmp_path: Path) -> None:
    """None is outside what chance leaves single ones, yet all together are."""
    weight_N = np.exp(np.where(np.arange(64) % 2, 0.06, -0.06))
    found = analyse(planted(tmp_path / "trace", weight_N, 6), **FEW)
    assert found.headline.uneven.startswith("Yes, beyond chance in 1 of 2 layers: CV")
    assert "no less than chance may leave to one of 128." in found.headline.least_used


def tables_of(counts_DN: np.ndarray, tokens: int, layer: int) -> tuple[Any, dict[str, Any]]:
    """The columns that `unevenness` reads, of documents that have as many tokens each."""
    documents, experts = counts_DN.shape
    counts_N, top_k = counts_DN.sum(axis=0), int(counts_DN[0].sum()) // tokens
    p_N = counts_N / (documents * tokens)
    deff_N = counts_DN.var(axis=0, ddof=1) / tokens / (p_N * (1 - p_N))
    load_N = p_N * experts / top_k
    weights_BD = poisson_weights([f"d{d}" for d in range(documents)], 100)
    columns = {"layer": layer, "relative_load": load_N, "ci_high": 1.0, "deff": deff_N}
    return pd.DataFrame(columns), {
        **{"layer": layer, "num_experts": experts, "top_k": top_k, "documents": documents},
        **{"tokens": documents * tokens, "assignments": counts_N.sum()},
        "tokens_effective": documents * tokens / np.median(deff_N),
        "uniform_p": layer_test(counts_N, replicate_sums(weights_BD, counts_DN), documents)[2],
        **{"max_vio": load_N.max() - 1, "max_vio_null": 0.1, "max_vio_noise": 0.1},
        **{"cv": load_N.std(), "cv_null": 0.1, "cv_noise": 0.1},
    }


@pytest.mark.parametrize(("spread", "documents"), [(0.0, 10), (0.7, 10), (0.7, 30)])
def test_fair_routing_is_even(spread: float, documents: int) -> None:
    """200 traces of two layers, also of documents that are unlike, whose sum is fair."""
    rng, p_values = np.random.default_rng(6), []
    for _ in range(200):
        made = []
        for layer in range(2):
            score_DTN = spread * rng.normal(size=(documents, 1, 16))
            score_DTN = score_DTN + rng.gumbel(size=(documents, 20, 16))
            ids_DTK = np.argpartition(score_DTN, -2, axis=2)[:, :, -2:]
            counts_DN = (ids_DTK[..., None] == np.arange(16)).sum(axis=(1, 2))
            made.append(tables_of(counts_DN, 20, layer))
        experts, layers = pd.concat([e for e, _ in made]), pd.DataFrame([row for _, row in made])
        text = unevenness(experts, layers, *load_limits(experts, layers))
        assert text.startswith("No layer is loaded more unevenly than chance explains")
        p_values += layers["uniform_p"].tolist()
    # Conservative, and so all the more the fewer documents there are.
    assert np.mean(np.array(p_values) < 0.05) < 0.05 + 3 * (0.05 * 0.95 / 400) ** 0.5


def test_three_documents_certify_single_experts_alone(tmp_path: Path) -> None:
    """One expert's interval is of 95 %; what all experts of fair routing keep to is far wider."""
    shape = 3, 64
    weights = {0: np.where(np.arange(64) < 1, 0.0, np.ones(shape))}
    path = write(tmp_path / "trace", weights, ["a"] * 3, np.full(3, 700), top_k=6, seed=2)
    text = analyse(path, **FEW).headline
    assert "Layer 0: 1 of 64 experts is certified below 10%" in text.least_used
    assert text.uneven.startswith(
        "There are too few documents to tell more than intervals of single experts do: MaxVio"
    )


def test_certifiable_load_is_where_the_interval_of_none_ends(tmp_path: Path) -> None:
    """3 N d / (k T) with a design effect d of at least 1, which T / T_eff need not be."""
    weight_N = np.where(np.arange(64) < 1, 0.0, 1.0)
    paths = [planted(tmp_path / str(each), weight_N, 6, each=each) for each in (1, 10)]
    # Ten documents that differ: an expert that none selects is widened by more than the median.
    unlike_DN = weight_N * np.random.default_rng(0).lognormal(0, 0.5, (10, 64))
    weights, lengths = dict.fromkeys((0, 1), unlike_DN), np.arange(20, 220, 20)
    paths.append(write(tmp_path / "unlike", weights, ["a"] * 10, lengths, top_k=6, seed=2))
    for path in paths:
        found = analyse(path, **FEW)
        layers, never = found.layers, found.experts.query("layer == 1 and expert == 0").iloc[0]
        assert never["count"] == 0
        assert layers["certifiable_load"][1] == pytest.approx(never["ci_high"])
        assert (layers["certifiable_load"] > 0.999 * 3 * 64 / (6 * layers["tokens"])).all()


@pytest.mark.parametrize("order", ["canonical", "request-local", "execution"])
@pytest.mark.parametrize("rule", [Rule.UNIQUE, Rule.RAW])
def test_layers_without_a_filled_slot(tmp_path: Path, rule: Rule, order: str) -> None:
    nobody_TK, rng = np.full((30, 2), -1), np.random.default_rng(0)
    specs = [LayerSpec(layer=n, num_experts=8, top_k=2, empty_slots=True) for n in (3, 5)]
    for name, layers in (("all", specs[:1]), ("one", specs)):
        with TraceWriter(tmp_path / name, layers=layers) as writer:
            for doc in range(40):
                chosen_TK = np.argsort(rng.random((30, 8)), axis=1)[:, :2]
                ids = [nobody_TK, chosen_TK][: len(layers)]
                writer.add(ids, task="t", subject="ab"[doc % 2], doc_id=doc)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        every, one = (
            analyse(tmp_path / name, rule=rule, order=order, windows=(100, 500), **FEW)
            for name in ("all", "one")
        )
        for name in TABLES:
            every.table(name)
            one.table(name)
        text = every.headline
        assert {text.uneven, text.least_used, text.idle} == {"No counted token selected an expert."}
        text = one.headline
    assert text.uneven.startswith("No layer is loaded more unevenly than chance explains: MaxVio")
    assert text.uneven.endswith("No counted token selected an expert of layer 3: left out here.")
    assert "one of 8." in text.least_used
    assert "layer 3" not in f"{text.least_used} {text.idle}"
    assert "bursts" not in text.idle


def test_why_unevenness_cannot_be_told(tmp_path: Path) -> None:
    two_TK = np.tile([[3, 5]], (20, 1))
    all_TK = np.tile(np.arange(4), (20, 1))
    said = {}
    for name, ids, number, spec in (
        ("counts", two_TK, 8, {"capture": "counts"}),
        ("same", two_TK, 8, {}),
        ("one", two_TK, 1, {}),
        ("all", all_TK, 8, {"num_experts": 4}),
    ):
        text = same_documents(tmp_path / name, [ids], number, **spec).headline
        assert "unknown" not in text.least_used
        said[name] = text.uneven, text.least_used
    assert said["counts"][0].startswith(
        "Counts alone do not know documents, so unevenness cannot be told from chance: MaxVio"
    )
    assert "(counts alone give no interval)" in said["counts"][1]
    assert said["same"][0].startswith(
        "All documents have the same loads, which leaves no chance to compare with: MaxVio"
    )
    assert said["one"][0].startswith("There are too few documents to tell unevenness from chance")
    assert "(one document gives no interval)" in said["one"][1]
    assert said["all"][0].startswith("Every token selects every expert, so no load can be uneven.")


@pytest.mark.parametrize("tokens", [1, 17, 32])
def test_documents_that_are_all_alike(tmp_path: Path, tokens: int) -> None:
    """One prompt again and again: no table divides by the difference that there is not."""
    ids_TK = np.argsort(np.random.default_rng(0).random((tokens, 16)), axis=1)[:, :2]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = same_documents(tmp_path / "trace", [ids_TK], 6)
        for name in TABLES:
            found.table(name)
        text = found.headline
    assert not found.experts["deff"].any()
    assert found.experts["ci_high"].isna().all()
    assert found.layers[["tokens_effective", "certifiable_load"]].isna().all(axis=None)
    assert found.table("indices")["null_effective"].isna().all()
    assert "(documents that do not differ give no interval)" in text.least_used
    assert "T_eff" not in f"{text.uneven} {text.least_used} {text.idle}"


def test_a_layer_whose_tokens_all_select_the_same_experts(tmp_path: Path) -> None:
    """Nothing in it varies, so that no design effect is known; yet forty documents agree."""
    rng = np.random.default_rng(3)
    layers = [LayerSpec(layer=n, num_experts=16, top_k=2) for n in (2, 6)]
    with TraceWriter(tmp_path / "trace", layers=layers) as writer:
        for doc in range(40):
            fair_TK = np.argsort(rng.random((20, 16)), axis=1)[:, :2]
            writer.add([fair_TK, np.tile([[3, 5]], (20, 1))], task="t", subject="a", doc_id=doc)
    found = analyse(tmp_path / "trace", **FEW)
    assert math.isnan(found.layers["tokens_effective"][1])
    assert found.headline.uneven.startswith("Yes, beyond chance in 1 of 2 layers: MaxVio")
    # Not for want of text is nothing said of it.
    text = f"{found.headline.least_used} {found.headline.idle}"
    assert "(documents that do not differ give no interval)." in text
    assert "so little text" not in text
    assert "of its fair share in 1 of 2 layers (as from" in text


def test_even_loads_stand_beside_chance_at_the_effective_tokens(tmp_path: Path) -> None:
    """Documents unlike each other make MaxVio larger than independent tokens would."""
    rng = np.random.default_rng(12)
    names, tokens_D = ragged(subjects=2, each=60, length=100, seed=1)
    weight_DN = rng.gamma(2.0, size=(len(names), 32))
    path = write(tmp_path / "trace", {3: weight_DN}, names, tokens_D, top_k=4, seed=5)
    found = analyse(path, **FEW)
    tokens = round(found.layers["tokens_effective"][0])
    most = []
    for _ in range(100):
        ids_TK = np.argpartition(rng.random((tokens, 32)), 4, axis=1)[:, :4]
        most.append(np.bincount(ids_TK.ravel(), minlength=32).max() * 8 / tokens - 1)
    text = found.headline.uneven
    value = re.search(r"is (\d\.\d\d) \(layer 3\); random routing gives", text)
    by_chance = re.search(r"about (\d\.\d\d) \(of T_eff tokens (\d\.\d\d)\)", text)
    assert text.startswith("No layer is loaded more unevenly")
    assert value
    assert by_chance
    assert float(value[1]) == pytest.approx(found.layers["max_vio"][0], abs=0.006)
    assert float(by_chance[1]) < 0.6 * float(by_chance[2])
    assert float(by_chance[2]) == pytest.approx(np.mean(most), rel=0.1)
