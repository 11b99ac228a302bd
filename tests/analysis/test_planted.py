"""What was planted in a trace is what its tables, sentences and checks say, and nothing else.

Shape suffixes: D documents, L layers, T tokens, K slots, N experts of a layer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from moe_probe.analysis.quality import failures
from moe_probe.analysis.results import TABLES, Analysis, analyse
from moe_probe.trace import LayerSpec, TraceWriter
from tests.analysis.planted import ragged, write

EXPERTS, TOP_K = 16, 2
RESERVED, STARVED, NEVER, BURSTING = (3, 5), (4, 2), (4, 9), (7, 11)
"""Layer and expert: used on subject s4 alone, a 0.3 % share, none, in one of eight documents."""


@pytest.fixture(scope="module")
def planted(tmp_path_factory: Any) -> Analysis:
    names, tokens_D = ragged(subjects=10, each=30, length=80, seed=0)
    weights = {layer: np.ones((len(names), EXPERTS)) for layer in (3, 4, 7)}
    weights[3][:, 5] = np.where(np.array(names) == "s4", 6, 0)
    weights[4][:, [2, 9]] = 0.003, 0
    weights[7][:, 11] = np.where(np.random.default_rng(1).random(len(names)) < 0.12, 100, 0)
    path = tmp_path_factory.mktemp("planted") / "trace"
    return analyse(write(path, weights, names, tokens_D, top_k=TOP_K, seed=2), replicates=50)


def row(table: pd.DataFrame, expert: tuple[int, int]) -> Any:
    found = table[(table["layer"] == expert[0]) & (table["expert"] == expert[1])]
    return found.iloc[0]


def test_tiers(planted: Analysis) -> None:
    table = planted.experts
    assert row(table, RESERVED)["tier"] == "not certified, bursty, subject-locked"
    assert row(table, STARVED)["tier"] == "near-idle"
    assert row(table, NEVER)["tier"] == "unseen"
    assert row(table, BURSTING)["tier"] == "used, bursty"
    assert (table["tier"] == "used").sum() == len(table) - 4


def test_reserved_expert(planted: Analysis) -> None:
    found = row(planted.experts, RESERVED)
    assert (found["documents"], found["idle_subjects"]) == (30, 9)
    assert found["rank_high"] == 1
    assert found["burstiness"] > 2
    assert found["information_bits"] > 10 * found["information_null"]
    assert found["information_q"] < 0.01
    table = planted.subjects
    cells: Any = table[(table["layer"] == 3) & (table["expert"] == 5)].set_index("subject")
    assert cells["z"].idxmax() == "s4"
    assert table["z"].max() == cells["z"].max()
    assert cells.loc["s4", "q_value"] < 1e-50
    others = cells.drop(index="s4")
    assert not others["count"].any()
    assert (others["log_odds"] < 0).all()
    # Nobody else uses it, so there is nothing to be a multiple of.
    assert np.isnan(float(cells["lift"]["s4"]))


def test_starved_experts(planted: Analysis) -> None:
    found = row(planted.experts, STARVED)
    assert found["ci_low"] < 0.003 < found["ci_high"] < 0.01
    assert found["rate_deficit"] > 4
    assert abs(found["burstiness"]) < 0.7
    assert (found["rank_low"], found["rank_high"], found["p_own"] > 0.01) == (2, 2, True)
    never = row(planted.experts, NEVER)
    assert never["longest_idle"] == never["current_idle"] == never["leading_idle"] == 24_315
    assert never["ci_high"] == pytest.approx(3 * EXPERTS / (TOP_K * 24_315), rel=0.05)
    assert row(planted.layers.assign(expert=9), NEVER)["unseen"] == 1


def test_bursting_expert(planted: Analysis) -> None:
    found = row(planted.experts, BURSTING)
    assert found["ci_low"] < 1 < found["ci_high"]
    assert (found["documents"], found["idle_subjects"]) == (37, 0)
    assert found["deff"] > 30
    assert found["burstiness"] > 2 > 0.2 > abs(found["rate_deficit"])
    assert found["p_own"] < 1e-6
    # In some documents more than in others, but in those of no subject.
    assert found["information_bits"] < 2 * found["information_null"]
    assert found["information_q"] > 0.05
    table = planted.subjects
    assert (table.loc[(table["layer"] == 7) & (table["expert"] == 11), "q_value"] > 0.05).all()


def test_only_the_reserved_expert_tells_subjects_apart(planted: Analysis) -> None:
    table: Any = planted.specialization.set_index("layer")
    assert table.loc[3, "mutual_information_bits"] > 5 * table.loc[3, "null_95"]
    assert (table.loc[[4, 7], "documents_bits"] < table.loc[[4, 7], "null_95"]).all()
    assert table.loc[3, "p_value"] == 1 / 201
    assert (table.loc[[4, 7], "p_value"] > 0.05).all()
    assert (table["q_value"] < 0.01).tolist() == [True, False, False]
    # q-values below 0.05: s4 in layer 3, where all others lose what it takes; one in 20 at most.
    found = planted.subjects.query("q_value < 0.05")
    is_true = (found["layer"] == 3) & ((found["expert"] == 5) | (found["subject"] == "s4"))
    assert is_true.sum() >= 20
    assert (~is_true).sum() <= 3
    experts = planted.experts.query("information_q < 0.05")
    assert (experts["layer"] == 3).sum() >= 10
    assert (experts["layer"] != 3).sum() <= 1


def test_sentences(planted: Analysis) -> None:
    found = planted.headline
    assert found.uneven.startswith("Yes, beyond chance in 2 of 3 layers: MaxVio")
    assert "28% is specialisation that evens out over the subjects" in found.uneven
    assert found.least_used.startswith(
        "Layer 4: 2 of 16 experts are certified below 10% of the fair share, 2 of them below 1%, "
        "on 24,315 tokens (T_eff "
    )
    assert "in all layers 2 of 48 are." in found.least_used
    assert (
        "Never selected: 1 of 48 experts (under 0.001 by chance), such as expert 9 of layer 4, "
        "whose load is at most"
    ) in found.least_used
    assert found.idle.startswith(
        "4 of 48 experts idle for 1,000 tokens in a row or more (the longest run: 24,315), which "
        "chance does not explain: "
    )
    for part in (
        "1 kept for some subjects (used less on the others), such as expert 5 of layer 3 on s4",
        "2 certified below 10% of their fair share on all subjects together, and not used much "
        "more on any (starved, or kept for other text: this corpus alone cannot tell)",
        "1 used in bursts, by few documents, such as expert 11 of layer 7",
    ):
        assert part in found.idle
    assert "only in this order" not in found.idle


def test_bursts_of_two_documents_and_of_every_document(tmp_path: Path) -> None:
    """Two documents of two subjects are kept for none; ends of all documents are not few."""
    names, tokens_D = ragged(subjects=4, each=20, length=200, seed=8)
    rng = np.random.default_rng(9)
    layers = [LayerSpec(layer=layer, num_experts=EXPERTS, top_k=TOP_K) for layer in (1, 2)]
    with TraceWriter(tmp_path / "trace", layers=layers) as writer:
        for number, (name, tokens) in enumerate(zip(names, tokens_D.tolist(), strict=True)):
            # Expert 15 is drawn by nobody, and then put in for another.
            ids = [np.argsort(rng.random((tokens, EXPERTS - 1)))[:, :TOP_K] for _ in layers]
            if number in (32, 61):
                ids[0][:, 0] = 15
            ids[1][-30:, 0] = 15
            writer.add(ids, subject=name, doc_id=number)
    found = analyse(tmp_path / "trace", windows=(150,), shuffles=5, replicates=20, permutations=20)
    assert row(found.experts, (1, 15))["tier"] == "not certified, bursty"
    assert row(found.experts, (2, 15))["tier"].startswith("used")
    assert found.headline.idle.partition("explain: ")[2].startswith(
        "1 used in bursts, by few documents, such as expert 15 of layer 1; "
        "1 used in bursts, by many documents, such as expert 15 of layer 2."
    )


def test_small_sample_certifies_nothing(tmp_path: Path) -> None:
    names, tokens_D = ragged(subjects=2, each=5, length=20, seed=3)
    weights = {layer: np.ones((10, 64)) for layer in (0, 1)}
    weights[1][:, 7] = 0
    path = write(tmp_path / "trace", weights, names, tokens_D, top_k=6, seed=4)
    found = analyse(path, replicates=50, permutations=50)
    tokens = int(tokens_D.sum())
    assert found.subjects[["log_odds", "z", "q_value"]].isna().all(axis=None)
    assert (found.experts["information_q"].dropna() > 0.05).all()
    never = row(found.experts, (1, 7))
    assert (never["tier"], never["count"]) == ("unseen, not certified", 0)
    assert 3 * 64 / (6 * tokens) < never["ci_high"] < 0.5
    tiers = set(found.experts["tier"].drop(index=never.name))
    assert tiers <= {"used", "not certified"}
    text = found.headline
    assert text.uneven.startswith("No layer is loaded more unevenly than chance explains: MaxVio")
    assert text.uneven.endswith("Subjects do not differ in their experts beyond chance.")
    assert text.least_used.startswith("No expert is certified below 10% of its fair share.")
    assert (
        "Never selected: 1 of 128 experts, such as expert 7 of layer 1, whose load is at most"
    ) in text.least_used
    assert text.least_used.endswith("; so little text does not tell that from chance.")
    assert text.idle.startswith("The trace is too short to tell a long idle run from chance.")
    certifiable = found.layers["certifiable_load"].max()
    assert f"can be certified below {certifiable:.0%} of its fair share" in text.idle


def test_nothing_resampled(tmp_path: Path) -> None:
    """All that takes shuffled orders, replicates or permutations is null, and nothing else."""
    names, tokens_D = ragged(subjects=2, each=30, length=10, seed=6)
    path = write(tmp_path / "trace", {2: np.ones((60, 8))}, names, tokens_D, top_k=2, seed=7)
    found = analyse(path, windows=(100,), shuffles=0, replicates=0, permutations=0)
    tables = {name: found.table(name) for name in TABLES}
    main = [tables[name] for name in ("experts", "layers", "subjects", "specialization")]
    null = {name for table in main for name in table if table[name].isna().all()}
    assert null >= {"longest_idle_shuffled", "burstiness", "max_vio_noise", "rank_low", "null"}
    assert not null & {"ci_low", "ci_high", "rate_deficit", "z", "q_value", "documents_bits"}
    assert (found.specialization["p_value"] == 1).all()
    assert "moves it by about" not in found.headline.uneven
    assert "specialisation" not in found.headline.uneven


def faulty(new_trace: Any, fault: Any, **facts: Any) -> Analysis:
    """Fair routing of 20 documents in 6 layers, with a fault in its rows that no writer checked."""
    rng = np.random.default_rng(5)
    score_LDTN = rng.random((6, 20, 30, 64))
    ids_LDTK = np.argsort(score_LDTN, axis=3)[..., :4].astype(np.uint8)
    fault(ids_LDTK)
    layers = [LayerSpec(layer=layer, num_experts=64, top_k=4) for layer in range(1, 7)]
    rows = [np.concatenate(list(ids_LDTK[:, number]), axis=1) for number in range(20)]
    trace = new_trace(layers, rows, run={"model_facts": {"num_moe_layers": 6, "top_k": 4}, **facts})
    return analyse(trace, replicates=10, permutations=10)


def failing(found: Analysis) -> dict[str, str]:
    return {check.check: check.value for check in failures(found.sums.checks)}


def test_sound_rows_fail_no_check(new_trace: Any) -> None:
    found = faulty(new_trace, lambda _: None)
    assert failing(found) == {}
    assert set(found.experts["tier"]) == {"used"}


def test_rows_of_zeros(new_trace: Any) -> None:
    """Every tenth row was never filled: expert 0 looks busy, and the others a tenth too idle."""

    def fault(ids_LDTK: np.ndarray) -> None:
        ids_LDTK[:, :, ::10] = 0

    found = faulty(new_trace, fault)
    assert set(failing(found)) == {"Q1", "Q2", "Q15"}
    assert failing(found)["Q2"] == "60 of 600 rows in layer 1, 360 over all layers"
    busiest = found.experts.sort_values("relative_load").groupby("layer").tail(1)
    assert set(busiest["expert"]) == {0}


def test_layer_of_zeros(new_trace: Any) -> None:
    """Expert 0 is selected four times by each token: a report ends, without warnings of numpy."""

    def fault(ids_LDTK: np.ndarray) -> None:
        ids_LDTK[2] = 0

    found = faulty(new_trace, fault)
    assert set(failing(found)) == {"Q1", "Q2", "Q5"}
    assert failing(found)["Q5"] == "layer 3: an expert beyond 600 tokens"
    for name in TABLES:
        found.table(name)
    assert row(found.experts, (3, 0))["relative_load"] == 64


def test_missing_layer(new_trace: Any) -> None:
    found = faulty(new_trace, lambda _: None, model_facts={"num_moe_layers": 7, "top_k": 4})
    assert failing(found) == {"Q7": "6"}


def test_id_beyond_the_last_expert(new_trace: Any) -> None:
    def fault(ids_LDTK: np.ndarray) -> None:
        ids_LDTK[2, 3, 4] = [64, 65, 200, 255]

    found = faulty(new_trace, fault)
    assert set(failing(found)) == {"Q4", "Q5"}
    assert failing(found)["Q4"] == "1 of 600 rows in layer 3, 1 over all layers"
    assert found.layers["assignments"].tolist() == [2400, 2400, 2396, 2400, 2400, 2400]
    counts = found.experts.groupby("layer")["count"].sum()
    assert counts.tolist() == found.layers["assignments"].tolist()
