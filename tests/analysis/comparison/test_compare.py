"""Whole comparisons: what was planted is found, and nothing else.

Shape suffixes: D documents, N experts of a layer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from moe_probe.analysis.comparison import TABLES, CompareSettings, Comparison, compare
from moe_probe.analysis.comparison.sides import distinct_labels
from moe_probe.analysis.metrics.imbalance import cv, gini, max_vio
from moe_probe.analysis.reading.rules import Rule
from moe_probe.errors import TraceError, UsageError
from moe_probe.trace import LayerSpec, TraceWriter, open_trace
from tests.analysis.comparison.prompts import make_prompts
from tests.analysis.comparison.prompts import write as write_prompts
from tests.analysis.planted import ragged, write

EXPERTS, TOP_K = 12, 2
FEW = CompareSettings(replicates=40)


def loads(trace: Path, layer: int) -> np.ndarray:
    """Selections of each expert, straight from the rows."""
    blocks = [block.topk_ids(layer) for block in open_trace(trace).scan([layer])]
    return np.bincount(np.concatenate(blocks).ravel(), minlength=EXPERTS)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: Any) -> tuple[Comparison, Path, Path]:
    """Two tasks: on the other one, expert 5 of layer 3 works twice as much, 7 of layer 4 not."""
    folder = tmp_path_factory.mktemp("planted")
    names, tokens_D = ragged(subjects=2, each=50, length=60, seed=0)
    weights = {layer: np.ones((len(names), EXPERTS)) for layer in (3, 4)}
    weights[4][:, 9] = 0
    first = write(folder / "one", weights, names, tokens_D, top_k=TOP_K, seed=1)
    weights[3][:, 5] = 2
    weights[4][:, 7] = 0
    names = ["s1" if name == "s1" else "new" for name in names]
    second = write(folder / "two", weights, names, tokens_D, top_k=TOP_K, seed=2)
    return compare([first, second], FEW), first, second


def test_planted_differences_are_found(planted: tuple[Comparison, Path, Path]) -> None:
    found, _, _ = planted
    table = found.table("experts")
    small = table[table["q_value"] < 1e-6]
    expected = {(3, 5), (4, 7)}
    assert expected <= {*zip(small["layer"], small["expert"], strict=True)}
    # What one expert gains or loses its layer's others lose or gain, by a tenth of as much.
    largest = table.loc[table.groupby("layer")["difference"].apply(lambda d: d.abs().idxmax())]
    assert {*zip(largest["layer"], largest["expert"], strict=True)} == expected
    row: Any
    for row in largest.itertuples():
        assert row.ci_low < row.difference < row.ci_high
        assert (row.ci_low > 0.5) if row.layer == 3 else (row.ci_high < -0.8)
    idle = table[table["idle_in"] != ""][["layer", "expert", "idle_in"]].to_numpy().tolist()
    assert idle == [[4, 7, "other"], [4, 9, "both"]]


def test_tables_are_those_of_the_rows(planted: tuple[Comparison, Path, Path]) -> None:
    found, first, second = planted
    experts, layers = found.table("experts"), found.table("layers")
    for place, layer in enumerate((3, 4)):
        counts = [loads(path, layer) for path in (first, second)]
        own = experts[experts["layer"] == layer]
        assert own["reference_count"].tolist() == counts[0].tolist()
        assert own["count"].tolist() == counts[1].tolist()
        share = [each / each.sum() for each in counts]
        np.testing.assert_allclose(own["difference"], EXPERTS * (share[1] - share[0]))
        row = layers.iloc[place]
        mean = (share[0] + share[1]) / 2
        with np.errstate(divide="ignore", invalid="ignore"):
            bits = sum(np.nansum(each * np.log2(each / mean)) for each in share) / 2
        assert row["divergence_bits"] == pytest.approx(bits)
        assert row["divergence_bits"] > 5 * row["divergence_noise_bits"]
        assert row["total_variation"] == pytest.approx(np.abs(share[1] - share[0]).sum() / 2)
        ranks = [pd.Series(each).rank() for each in counts]
        assert row["spearman"] == pytest.approx(ranks[0].corr(ranks[1]))
        assert row["spearman_resampled"] < 1
        for name, index in (("max_vio", max_vio), ("cv", cv), ("gini", gini)):
            values = [float(index(each)) for each in counts]
            assert row[f"{name}_reference"] == values[0]
            assert row[name] == values[1]
            assert row[f"{name}_difference"] == values[1] - values[0]
            assert row[f"{name}_noise"] > 0
        assert row["differing_experts"] == (own["q_value"] < 0.05).sum()
    assert layers["idle_both"].tolist() == [0, 1]
    assert layers["idle_other"].tolist() == [0, 1]
    assert layers["idle_p"].iloc[1] == pytest.approx(2 / 12)


def test_subjects_that_match_are_compared(planted: tuple[Comparison, Path, Path]) -> None:
    found, first, second = planted
    table = found.table("subjects")
    assert table["subject"].unique().tolist() == ["s1"]
    tokens = []
    for path in (first, second):
        rows = open_trace(path).sequences.to_pylist()
        tokens.append(sum(row["num_tokens"] for row in rows if row["subject"] == "s1"))
    assert table[["reference_tokens", "tokens"]].to_numpy().tolist() == [tokens] * 2
    assert (table["divergence_bits"] > 3 * table["divergence_noise_bits"]).all()
    # The other documents are of another subject, so of them there is no pair.
    assert found.table("traces")["paired_documents"].tolist()[1] == 50


def test_a_trace_against_itself(tmp_path: Path) -> None:
    trace = write_prompts(tmp_path / "a", make_prompts(2, number=30), noise=0)
    found = compare([trace, trace, trace], FEW)
    assert found.labels == ["a", "a (2)", "a (3)"]
    experts, layers = found.table("experts"), found.table("layers")
    assert len(experts) == 2 * (8 + 256 + 300)
    assert not experts[["difference", "ci_low", "ci_high"]].to_numpy().any()
    assert experts["q_value"].isna().all()
    assert not layers[["divergence_bits", "divergence_noise_bits", "max_vio_noise"]].any(axis=None)
    np.testing.assert_allclose(layers[["spearman", "kendall"]], 1)
    # Of many experts most are idle, and which of them are the least used tenth is a draw.
    np.testing.assert_allclose(layers[layers["layer"] == 1]["least_overlap"], 1)
    agreement = found.table("agreement")
    ones = ["overlap", "overlap_low", "overlap_high", "same_set"]
    assert (agreement[ones] == 1).all(axis=None)
    assert agreement["rank_overlap"].iloc[:2].tolist() == pytest.approx([1, 1])
    assert agreement["weight_difference"].tolist() == pytest.approx([0] * 6, abs=1e-7)
    first = found.table("first_divergence")
    assert first[first["layer"].isna()]["share"].tolist() == [1, 1]
    tokens = found.table("traces")
    assert tokens["aligned_tokens"].tolist()[1:] == tokens["tokens"].tolist()[1:]


@pytest.mark.parametrize("seed", range(3))
def test_halves_of_a_trace_are_alike(tmp_path: Path, seed: int) -> None:
    names, tokens_D = ragged(subjects=2, each=60, length=40, seed=seed)
    rng = np.random.default_rng(seed)
    weight_DN = rng.gamma(2, size=EXPERTS) * rng.gamma(3, size=(len(names), EXPERTS))
    paths = []
    for half, chosen_D in enumerate(rng.permutation(len(names)).reshape(2, -1)):
        path = tmp_path / str(half)
        own = {3: weight_DN[chosen_D]}
        subjects = [names[document] for document in chosen_D]
        paths.append(write(path, own, subjects, tokens_D[chosen_D], top_k=2, seed=10 * seed + half))
    found = compare(paths, FEW)
    # Both number their documents from 0, so documents of equal number are paired, though no kin.
    assert (found.table("experts")["q_value"] > 0.05).all()
    row = found.table("layers").iloc[0]
    assert row["divergence_bits"] < 4 * row["divergence_noise_bits"]
    assert row["differing_experts"] == 0


def test_other_shapes_have_indices_alone(tmp_path: Path) -> None:
    names, tokens_D = ragged(subjects=2, each=4, length=30, seed=0)
    wide = {1: np.ones((len(names), 16)), 2: np.ones((len(names), 16))}
    first = write(tmp_path / "a", {0: np.ones((len(names), 8))}, names, tokens_D, top_k=2, seed=0)
    second = write(tmp_path / "b", wide, names, tokens_D, top_k=4, seed=1)
    found = compare([first, second], FEW)
    for name in ("experts", "layers", "subjects", "agreement", "margins"):
        assert found.table(name).empty
    table = found.table("indices")
    assert table[["trace", "layer", "num_experts"]].to_numpy().tolist() == [
        *[["a", 0, 8], ["b", 1, 16], ["b", 2, 16]]
    ]
    assert table["depth"].tolist() == [0, 0, 1]
    assert table["max_vio_noise"].notna().all()
    assert found.table("traces")["same_shape"].tolist()[1] is False


def test_counts_alone_have_no_intervals(tmp_path: Path) -> None:
    layers = [LayerSpec(layer=0, num_experts=4, top_k=2)]
    for name, capture in (("a", "ids"), ("b", "counts")):
        with TraceWriter(tmp_path / name, layers=layers, capture=capture) as writer:
            for document in range(3):
                ids = np.array([[0, 1], [document, 3], [2, 1 - document % 2]])
                writer.add([ids], doc_id=document, subject="x", token_ids=np.arange(3))
    found = compare([tmp_path / "a", tmp_path / "b"], FEW)
    experts = found.table("experts")
    assert not experts["difference"].any()
    assert experts[["ci_low", "ci_high", "p_value", "q_value"]].isna().all(axis=None)
    assert found.table("layers")["divergence_noise_bits"].isna().all()
    assert found.table("layers")["differing_experts"].isna().all()
    assert found.table("subjects")["subject"].tolist() == ["x"]
    assert found.table("agreement").empty
    assert all(isinstance(found.table(name), pd.DataFrame) for name in TABLES)


def test_the_seed_decides_the_bootstrap(planted: tuple[Comparison, Path, Path]) -> None:
    found, first, second = planted
    noise = []
    for seed in (0, 0, 1):
        settings = CompareSettings(replicates=40, seed=seed, threads=seed + 1)
        noise.append(compare([first, second], settings).table("layers")["max_vio_noise"].tolist())
    assert noise[0] == noise[1] == found.table("layers")["max_vio_noise"].tolist()
    assert noise[0] != noise[2]


def test_refusals(planted: tuple[Comparison, Path, Path], tmp_path: Path) -> None:
    _, first, _ = planted
    with pytest.raises(UsageError, match="needs two traces or more, and 1 was given"):
        compare([first])
    with pytest.raises(TraceError, match="is not a moe-probe trace"):
        compare([first, tmp_path])
    with pytest.raises(TraceError, match="token ids"):
        compare([first, first], CompareSettings(rule=Rule.NO_TEMPLATE))
    layers = [LayerSpec(layer=0, num_experts=4, top_k=1)]
    with TraceWriter(tmp_path / "live", layers=layers) as writer:
        writer.add([np.zeros((3, 1), int)], new_from=-1)
    with pytest.raises(UsageError, match=r"by the rule raw and .* by the rule unique"):
        compare([first, tmp_path / "live"])
    with TraceWriter(tmp_path / "dense", layers=[]):
        pass
    with pytest.raises(TraceError, match="was recorded with --baseline"):
        compare([first, tmp_path / "dense"])


@pytest.mark.parametrize(
    ("paths", "labels"),
    [
        (["a", "b"], ["a", "b"]),
        (["x/trace", "y/trace"], ["x/trace", "y/trace"]),
        (["a", "a"], ["a", "a (2)"]),
        (["x/t", "x/t", "y/t"], ["x/t", "x/t (2)", "y/t"]),
    ],
)
def test_labels_tell_traces_apart(tmp_path: Path, paths: list[str], labels: list[str]) -> None:
    assert distinct_labels([tmp_path / path for path in paths]) == labels
