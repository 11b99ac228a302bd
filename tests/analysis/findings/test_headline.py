"""The report's sentences on planted truths, on fair routing, and on tables with gaps.

Shape suffixes: N experts, D documents.
"""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pandas as pd
import pytest

from moe_probe.analysis.findings.headline import headline
from moe_probe.analysis.findings.idle_readings import idle_readings
from moe_probe.analysis.findings.idle_tokens import telling_window
from moe_probe.analysis.reading.orders import PASSES
from moe_probe.analysis.results import analyse
from moe_probe.bundled import SAMPLE_TRACE
from tests.analysis.findings.one_layer import (
    BURSTING,
    EXPERTS,
    NO_SPECIALIZATION,
    NO_SUBJECTS,
    SPECIALIZATION,
    STARVED,
    TOP_K,
    WINDOWS,
    route,
    tables_of,
    windows_in_passes,
)


@pytest.mark.parametrize(("bits", "differ"), [(0.12, False), (0.149, False), (0.151, True)])
def test_subjects_differ_only_far_beyond_chance(planted: Any, bits: float, differ: bool) -> None:
    """One trace in 20 exceeds the 95 % quantile by chance, and one in 1,000 the mean so far."""
    experts, layers, subjects = planted
    specialization = pd.DataFrame([(bits, 0.1, 0.12, 0.2)], columns=SPECIALIZATION)
    text = headline(experts, layers, WINDOWS, subjects, specialization).uneven
    assert ("is specialisation that evens out" in text) == differ
    assert ("do not differ in their experts beyond chance" in text) != differ


def test_subjects_of_one_document_each_are_not_called_alike(planted: Any) -> None:
    """However unlike they are, permuting them gives what there is."""
    experts, layers, subjects = planted
    specialization = pd.DataFrame([(0.4, 0.4, 0.4 + 1e-15, 0.2)], columns=SPECIALIZATION)
    text = headline(experts, layers, WINDOWS, subjects, specialization).uneven
    assert text.endswith("So few documents do not tell whether subjects differ in their experts.")


def test_specialised_share_leaves_shared_prefixes_out() -> None:
    """Of the bundled trace prefixes are most of what `unique` counts; `question` has none."""
    texts = [
        analyse(SAMPLE_TRACE, rule=rule, shuffles=0, replicates=0, permutations=50).headline.uneven
        for rule in ("unique", "question")
    ]
    shares = [re.search(r"(\d+)% is specialisation", text) for text in texts]
    unique, question = [int(found[1]) for found in shares if found]
    # With prefixes in the denominator and none in the null it was 15.
    assert unique == question
    assert 24 < unique < 30


@pytest.mark.parametrize(
    ("documents", "reading", "text"),
    [
        (0, "prefixes", "1 used by shared prefixes alone, such as expert 3 of layer 7"),
        (99, "few", "1 used in bursts, by few documents, such as expert 3 of layer 7"),
        (100, "many", "1 used in bursts, by many documents, such as expert 3 of layer 7"),
        (pd.NA, "bursts", "1 used in bursts, such as expert 3 of layer 7"),
    ],
)
def test_bursts_say_how_many_documents_they_are_of(
    planted: Any, documents: Any, reading: str, text: str
) -> None:
    experts, layers, subjects = planted
    experts = experts.copy()
    experts.loc[BURSTING, "documents"] = documents
    assert idle_readings(experts, layers, subjects, 1000)[BURSTING] == reading
    assert text in headline(experts, layers, WINDOWS, subjects, NO_SPECIALIZATION).idle


def test_what_an_interval_certifies_is_not_left_to_chance(planted: Any) -> None:
    """Three documents leave all experts together any load, and certify one expert's."""
    experts, layers, subjects = planted
    few = layers.assign(documents=3)
    text = headline(experts, few, WINDOWS, subjects, NO_SPECIALIZATION).least_used
    assert "1 of 16 experts is certified below 10%" in text
    assert "chance" not in text
    experts = experts.assign(ci_high=experts["ci_high"].clip(lower=0.2))
    text = headline(experts, few, WINDOWS, subjects, NO_SPECIALIZATION).least_used
    assert text.endswith("no less than chance may leave to one of 16.")
    experts.loc[STARVED, ["count", "relative_load"]] = 0
    text = headline(experts, few, WINDOWS, subjects, NO_SPECIALIZATION).least_used
    assert text.endswith(
        "at most 20% of its fair share; so little text does not tell that from chance."
    )


def test_sentences_of_planted_experts(planted: Any) -> None:
    experts, layers, subjects = planted
    specialization = pd.DataFrame([(0.31, 0.01, 0.02, 0.2)], columns=SPECIALIZATION)
    found = headline(experts, layers, WINDOWS, subjects, specialization)
    assert found.uneven.startswith("Yes, beyond chance in 1 of 1 layers: MaxVio")
    share = 0.3 * math.log(2) / (0.3 * math.log(2) + 0.2)
    assert f"{share:.0%} is specialisation" in found.uneven
    assert "Layer 7: 1 of 16 experts is certified below 10% of the " in found.least_used
    assert "fair share, none of them below 1%, on 20,000 tokens (T_eff " in found.least_used
    assert "The least used, expert 1 of layer 7, carries" in found.least_used
    assert found.idle.startswith("4 of 16 experts idle for 1,000 tokens in a row or more")
    for reading in (
        "1 only in this order of the documents",
        "1 kept for some subjects (used less on the others), such as expert 0 of layer 7 on "
        "subject4",
        "1 certified below 10% of their fair share",
        "1 used in bursts, by few documents, such as expert 3",
        "An expert that this trace never selects can be certified below",
    ):
        assert reading in found.idle


def test_least_used_expert_names_its_subjects(planted: Any) -> None:
    experts, layers, subjects = planted
    experts = experts.drop(index=STARVED)
    text = headline(experts, layers, WINDOWS, subjects, NO_SPECIALIZATION).least_used
    assert "No expert is certified below 10%" in text
    assert "expert 0 of layer 7" in text
    assert text.endswith("most on subject4; never on subject0, subject1, subject2 and 6 more.")


def test_never_selected_expert_is_idle_on_this_corpus() -> None:
    weight_DN = np.ones((400, EXPERTS))
    weight_DN[:, 5] = 0
    experts, layers, subjects = tables_of(route(weight_DN, 3), 2)
    found = headline(experts, layers, WINDOWS, subjects, NO_SPECIALIZATION)
    assert (
        "Never selected: 1 of 16 experts (under 0.001 by chance), such as expert 5"
        in found.least_used
    )
    assert "expert 5 of layer 2, whose load is at most" in found.least_used
    wide = experts.assign(ci_high=np.maximum(experts["ci_high"], 1.5))
    text = headline(wide, layers, WINDOWS, subjects, NO_SPECIALIZATION).least_used
    assert "expert 5 of layer 2." in text
    assert "(the longest run: 20,000)" in found.idle
    assert "this corpus alone cannot tell" in found.idle


def test_fair_routing_exceeds_chance_in_nothing() -> None:
    """200 layers, in traces of 20."""
    specialization = pd.DataFrame([(0.1, 0.1, 0.12, 0.0)], columns=SPECIALIZATION)
    windows = pd.DataFrame({"layer": 0, "window": [100, 200, 1000], "expected_runs_fair": 1e-3})
    for trace in range(10):
        made = [
            tables_of(route(np.ones((20, EXPERTS)), 20 * trace + layer), layer)
            for layer in range(20)
        ]
        experts, layers, subjects = (
            pd.concat(parts, ignore_index=True) for parts in zip(*made, strict=True)
        )
        found = headline(experts, layers, windows, subjects, specialization)
        assert found.uneven.startswith("No layer is loaded more unevenly than chance explains")
        assert found.uneven.endswith("Subjects do not differ in their experts beyond chance.")
        assert found.least_used.startswith("No expert is certified below 10%")
        assert found.least_used.endswith("no less than chance may leave to one of 320.")
        assert found.idle.startswith("No expert idles for 200 tokens in a row: nothing exceeds")
        assert set(experts["tier"]) == {"used"}
        assert "dead" not in f"{found.uneven} {found.least_used} {found.idle}"


def test_nothing_counted(planted: Any) -> None:
    experts, layers, subjects = planted
    unknown = experts.assign(relative_load=math.nan, ci_low=math.nan, ci_high=math.nan)
    layers = layers.assign(tokens=0, assignments=0, max_vio=math.nan, tokens_effective=math.nan)
    found = headline(unknown, layers, WINDOWS, subjects, NO_SPECIALIZATION)
    assert found.uneven == found.least_used == found.idle == "No token was counted."


def test_one_document_has_no_chance_to_compare_with(planted: Any) -> None:
    experts, layers, _ = planted
    experts = experts.assign(ci_low=math.nan, ci_high=math.nan, tier="not certified")
    layers = layers.assign(
        tokens_effective=math.nan, certifiable_load=math.nan, max_vio_noise=math.nan
    )
    layers = layers.assign(tokens=400, assignments=400 * TOP_K, documents=1, uniform_p=math.nan)
    found = headline(experts, layers, WINDOWS[1:], NO_SUBJECTS, NO_SPECIALIZATION)
    assert found.uneven.startswith("There are too few documents to tell unevenness from chance")
    assert "of its fair share (one document gives no interval)" in found.least_used
    assert "unknown" not in found.least_used
    assert "chance" not in found.least_used
    assert found.idle == "The trace is too short to tell a long idle run from chance."


def test_little_text_certifies_no_low_load(planted: Any) -> None:
    experts, layers, subjects = planted
    layers = layers.assign(certifiable_load=1.5, tokens_effective=16.0)
    text = headline(experts, layers, WINDOWS, subjects, NO_SPECIALIZATION).idle
    assert "can be certified on so little text (as from 16 independent tokens)." in text


def test_sentence_in_forward_passes(planted: Any) -> None:
    experts, layers, subjects = planted
    experts = experts.assign(longest_idle=[99, 250, 100, *[0] * (EXPERTS - 3)], p_fair=1.0)
    args = (layers, windows_in_passes(0.0009), subjects, NO_SPECIALIZATION)
    text = headline(experts, *args, unit=PASSES).idle
    assert text.startswith(
        "2 of 16 experts idle for 100 forward passes in a row or more (400 tokens on average), "
        "which chance does not explain; the longest run is of expert 1 of layer 7: 250 passes."
    )
    short = headline(experts.assign(longest_idle=99), *args, unit=PASSES).idle
    assert short.startswith("No expert idles for 100 forward passes in a row: nothing exceeds")
    experts = experts.assign(longest_idle=99).astype({"p_fair": float})
    experts.loc[3, "p_fair"] = 0.9 * 0.001 / EXPERTS
    assert headline(experts, *args, unit=PASSES).idle.startswith(
        "No expert idles for 100 forward passes in a row; the run of 99 without expert 3 of layer "
        "7 is longer than random routing leaves."
    )
    unknown = headline(experts.assign(longest_idle=math.nan), *args, unit=PASSES).idle
    assert unknown.startswith("Idle runs are unknown")


def test_windows_that_chance_leaves_an_expert_idle_for_tell_nothing(planted: Any) -> None:
    experts, layers, subjects = planted
    args = (layers, windows_in_passes(0.0011), subjects, NO_SPECIALIZATION)
    assert headline(experts, *args, unit=PASSES).idle.startswith("The trace is too short")
    args = (layers, args[1].dropna(), *args[2:])
    assert headline(experts, *args, unit=PASSES).idle.startswith(
        "Chance may leave experts idle for 100 forward passes: ask for longer windows."
    )


def test_runs_below_the_windows_are_not_called_chance(planted: Any) -> None:
    """Two of 16 experts a token, 20,000 tokens: fair routing leaves none idle for 130 of them."""
    experts, layers, subjects = planted
    windows = pd.DataFrame({"layer": 7, "window": [10, 1000, 5000], "expected_runs_fair": 1e-3})
    for longest, rest in (
        (80, ": nothing exceeds chance."),
        (400, "; the run of 400 without expert 2 of layer 7 is longer than random routing leaves."),
    ):
        runs = experts.assign(longest_idle=np.where(experts["expert"] == 2, longest, 50))
        text = headline(runs, layers, windows, subjects, NO_SPECIALIZATION).idle
        assert text.startswith(f"No expert idles for 1,000 tokens in a row{rest}")
    text = headline(experts, layers, windows[:1], subjects, NO_SPECIALIZATION).idle
    assert text.startswith("Chance may leave experts idle for 10 tokens: ask for longer windows.")


def test_documents_shorter_than_the_windows_tell_nothing_of_idle_runs(planted: Any) -> None:
    """In the order request-local no run leaves a document: they have no expected runs."""
    experts, layers, subjects = planted
    windows = pd.DataFrame({"layer": 7, "window": [10, 1000], "expected_runs_fair": [90.0, 0.0]})
    text = headline(experts, layers, windows, subjects, NO_SPECIALIZATION).idle
    assert text.startswith("Documents are too short for a window that tells an idle run inside one")
    both = windows.assign(window=[200, 1000], expected_runs_fair=[1e-9, 0.0])
    assert telling_window(both, layers) == 200


def test_few_selections_are_not_said_to_avoid_subjects(planted: Any) -> None:
    experts, layers, subjects = planted
    least = experts["expert"] == STARVED
    for count, is_told in ((29, False), (30, True)):
        table = experts.assign(count=np.where(least, count, experts["count"]))
        table["deff"] = np.where(least, 0.9, experts["deff"])
        mine = subjects.assign(count=np.where(subjects["subject"] == "subject1", 0, 9))
        text = headline(table, layers, WINDOWS, mine, NO_SPECIALIZATION).least_used
        assert ("; never on subject1." in text) is is_told
