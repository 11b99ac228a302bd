"""What the page is given of subjects and of structure, against loops and the tables.

Shape suffixes: S subjects, N experts of a layer, L layers, X lags.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_probe.analysis.metrics.coactivation import deviance
from moe_probe.analysis.metrics.divergence import jensen_shannon
from moe_probe.analysis.reading.rules import Rule
from moe_probe.analysis.report.contents import Contents, gather
from moe_probe.analysis.report.page import data_structure
from moe_probe.analysis.report.page.data_structure import expert_order, structure
from moe_probe.analysis.report.page.data_subjects import divergences, subjects
from moe_probe.analysis.report.page.payload import Payload
from moe_probe.analysis.settings import Settings
from tests.analysis.conftest import LAYERS, make_run


class Kept(Payload):
    """A payload that can be read."""

    def __init__(self) -> None:
        super().__init__()
        self.arrays: dict[str, np.ndarray] = {}
        self.tables: dict[str, pd.DataFrame] = {}

    def array(self, name: str, values: np.ndarray) -> None:
        super().array(name, values)
        self.arrays[name] = values

    def table(self, name: str, table: pd.DataFrame, *, digits: int = 6) -> None:
        super().table(name, table, digits=digits)
        self.tables[name] = table


@pytest.fixture(scope="module")
def contents(tmp_path_factory: pytest.TempPathFactory) -> Contents:
    trace = make_run(tmp_path_factory.mktemp("data") / "trace", 3).trace
    return gather(trace, Settings(rule=Rule.RAW, permutations=5, replicates=5, shuffles=2))


def test_divergences_are_of_the_counts(contents: Contents) -> None:
    found_MSS, sums = divergences(contents), contents.analysis.sums
    wanted_LSS = np.stack([jensen_shannon(sums.by_group(layer)[0]) for layer in sums.specs])
    np.testing.assert_allclose(found_MSS[1:], wanted_LSS, atol=1e-12)
    np.testing.assert_allclose(found_MSS[0], wanted_LSS.mean(axis=0), atol=1e-12)


def test_tree_joins_clusters_at_their_mean_distance(contents: Contents) -> None:
    payload = Kept()
    subjects(contents, payload)
    distance_MSS = np.sqrt(divergences(contents))
    number = distance_MSS.shape[1]
    assert number == 3
    for place, distance_SS in enumerate(distance_MSS):
        members = {subject: [subject] for subject in range(number)}
        order = payload.arrays["subjects.order"][place].tolist()
        assert sorted(order) == list(range(number))
        assert payload.arrays["subjects.leaves"][place] == number
        for join in range(number - 1):
            one, other = (members[m] for m in payload.arrays["subjects.joined"][place, join])
            members[number + join] = [*one, *other]
            mean = distance_SS[np.ix_(one, other)].mean()
            assert payload.arrays["subjects.height"][place, join] == pytest.approx(mean, rel=1e-3)
            places = sorted(map(order.index, members[number + join]))
            assert places == list(range(places[0], places[0] + len(places)))


def test_design_effects_are_by_layer(contents: Contents) -> None:
    payload = Kept()
    subjects(contents, payload)
    sums = contents.analysis.sums
    assert payload.arrays["subjects.documents"].tolist() == sums.documents_S.tolist()
    width = max(spec.num_experts for spec in LAYERS)
    assert payload.arrays["subjects.deff"].shape == (len(LAYERS), 3)
    assert payload.arrays["subjects.deff_within"].shape == (len(LAYERS), width)
    for place, spec in enumerate(LAYERS):
        assert np.isnan(payload.arrays["subjects.deff_within"][place, spec.num_experts :]).all()


def test_strongest_pairs_are_kept(contents: Contents, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_structure, "MOST_PAIRS", 10 * len(LAYERS))
    payload = Kept()
    structure(contents, payload)
    table = contents.analysis.table("coactivation")
    table = table[table["expert"] < table["other"]]
    pairs = payload.tables["pairs"]
    for place, spec in enumerate(LAYERS):
        found = pairs[pairs["layer"] == place]
        if spec.top_k == 1:
            assert found.empty
            continue
        keys = ["expert", "other"]
        mine = table[table["layer"] == spec.layer].set_index(keys)
        kept = mine.loc[found.set_index(keys).index]
        assert len(kept) == 10
        assert kept["count"].tolist() == found["count"].tolist()
        near, far = (
            deviance(side["count"].to_numpy(), side["expected"].to_numpy())
            for side in (mine.drop(kept.index), kept)
        )
        assert far.min() >= np.nanmax(near)
        order_N = payload.arrays["pairs.order"][place, : spec.num_experts]
        assert sorted(order_N) == list(range(spec.num_experts))


@given(st.integers(2, 4), st.integers(2, 5), st.randoms(use_true_random=False))
def test_experts_that_meet_lie_side_by_side(blocks: int, size: int, random: object) -> None:
    """Blocks of experts that meet each other only, with their ids shuffled."""
    ids_N = list(range(blocks * size))
    random.shuffle(ids_N)  # type: ignore[attr-defined]
    block_of = {expert: place // size for place, expert in enumerate(ids_N)}
    rows = [
        (one, other, 3.0 if block_of[one] == block_of[other] else 0.2)
        for one in range(len(ids_N))
        for other in range(one + 1, len(ids_N))
    ]
    order_N = expert_order(pd.DataFrame(rows, columns=["expert", "other", "ratio"]), len(ids_N))
    assert sorted(order_N) == list(range(len(ids_N)))
    found = [block_of[expert] for expert in order_N]
    assert all(len(set(found[at : at + size])) == 1 for at in range(0, len(found), size))


def test_repeats_of_subjects_are_those_of_the_table(contents: Contents) -> None:
    payload = Kept()
    structure(contents, payload)
    lags = payload.arrays["repeats.lags"].tolist()
    overlap_LSX = payload.arrays["repeats.subject_overlap"]
    assert overlap_LSX.shape == (len(LAYERS), 3, len(lags))
    table = contents.analysis.table("repeats")
    rows = {(row.layer, row.subject, row.lag): row for row in table.itertuples()}
    for place, spec in enumerate(LAYERS):
        for s, subject in enumerate(contents.analysis.sums.subjects):
            for x, lag in enumerate(lags):
                row = rows[spec.layer, subject, lag]
                assert payload.arrays["repeats.subject_pairs"][place, s, x] == row.pairs
                wanted = pytest.approx(row.overlap_ratio, rel=1e-4, nan_ok=True)
                assert overlap_LSX[place, s, x] == wanted


def test_nulls_of_one_expert_per_token(contents: Contents) -> None:
    payload = Kept()
    structure(contents, payload)
    place = next(place for place, spec in enumerate(LAYERS) if spec.top_k == 1)
    table, counts = payload.tables["repeats"], contents.counts[place]
    table = table[table["layer"] == LAYERS[place].layer]
    share_N = counts.counts_N / counts.tokens
    for name in ("first_choice", "any_overlap"):
        found = table[f"{name}_null_own"].to_numpy()
        assert found == pytest.approx((share_N**2).sum(), rel=1e-4)
        assert table[f"{name}_null"].to_numpy() == pytest.approx(1 / len(share_N), rel=1e-4)


def test_counts_alone_have_no_pairs(tmp_path: Path) -> None:
    trace = make_run(tmp_path / "trace", 3, capture="counts").trace
    payload = Kept()
    structure(gather(trace, Settings()), payload)
    assert payload.meta["has_rows"] is False
    assert payload.tables == {}
