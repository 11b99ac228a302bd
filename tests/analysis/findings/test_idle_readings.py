"""What long idle runs are taken for, on planted truths and on tables with gaps."""

from __future__ import annotations

import math
from typing import Any

import pytest

from moe_probe.analysis.findings.idle_readings import idle_readings
from moe_probe.analysis.findings.idle_tokens import telling_window
from tests.analysis.findings.one_layer import (
    BURSTING,
    EXPERTS,
    NO_SUBJECTS,
    ORDERED,
    RESERVED,
    STARVED,
    TOP_K,
    WINDOWS,
)


def test_readings_of_planted_experts(planted: Any) -> None:
    experts, layers, subjects = planted
    assert telling_window(WINDOWS, layers) == 1000
    found = idle_readings(experts, layers, subjects, 1000).tolist()
    assert found[:4] == ["kept", "low", "order", "few"]
    used = experts.assign(tier="used")
    assert idle_readings(used, layers, subjects, 1000)[STARVED] == "light"
    assert set(found[4:]) == {""}
    assert "subject-locked" in experts["tier"][RESERVED]
    assert experts["tier"][STARVED] in ("rare", "near-idle")


def test_reserved_expert_is_known_by_its_subject_alone(planted: Any) -> None:
    experts, layers, subjects = planted
    plain = experts.assign(tier=experts["tier"].str.replace(", subject-locked", ""))
    assert idle_readings(plain, layers, subjects, 1000)[RESERVED] == "kept"
    assert idle_readings(plain, layers, NO_SUBJECTS, 1000)[RESERVED] == "few"


@pytest.mark.parametrize(("documents", "reading"), [(1, "few"), (9, "few"), (10, "many")])
def test_fewer_than_ten_documents_are_few(planted: Any, documents: int, reading: str) -> None:
    experts, layers, subjects = planted
    experts, layers = experts.assign(documents=documents), layers.assign(documents=12)
    assert idle_readings(experts, layers, subjects, 1000)[BURSTING] == reading


def test_small_sample_is_undecided(planted: Any) -> None:
    experts, layers, subjects = planted
    experts = experts.assign(tier="not certified", ci_high=0.6)
    found = idle_readings(experts, layers, subjects, 1000).tolist()
    # What takes no certified rate stays: the run itself is beyond chance.
    assert found[:4] == ["kept", "undecided", "order", "few"]
    experts = experts.assign(tier="unseen, not certified", burstiness=0.0)
    assert idle_readings(experts, layers, NO_SUBJECTS, 1000)[STARVED] == "undecided"
    # Somewhere below half a fair share is certain, and explains the run.
    experts = experts.assign(ci_high=0.4)
    assert idle_readings(experts, layers, NO_SUBJECTS, 1000)[STARVED] == "light"


def test_without_shuffled_orders_only_the_kept_are_told(planted: Any) -> None:
    experts, layers, _ = planted
    experts = experts.assign(longest_idle_shuffled=math.nan, burstiness=math.nan)
    found = idle_readings(experts, layers, NO_SUBJECTS, 1000)
    assert found[[RESERVED, STARVED, ORDERED]].tolist() == ["kept", "undecided", "undecided"]


def test_what_a_low_rate_explains_is_not_of_the_order(planted: Any) -> None:
    """20 selections of 20,000 tokens leave 5,000 in a row without one in one of eight streams."""
    experts, layers, _ = planted
    runs = {"longest_idle": 5_100, "longest_idle_shuffled": 4_000}
    rates = {"count": 20, "relative_load": 20 / 20_000 * EXPERTS / TOP_K}
    rare = {"ci_high": 0.02, "tier": "rare", "burstiness": 0.0, "rate_deficit": 4.0}
    one = experts.assign(**runs, **rates, **rare).loc[[STARVED]]
    assert idle_readings(one, layers, NO_SUBJECTS, 5_000).tolist() == ["low"]
    # A hundred times as many leave none.
    often = one.assign(relative_load=100 * one["relative_load"])
    assert idle_readings(often, layers, NO_SUBJECTS, 5_000).tolist() == ["order"]
