"""Clusters: the documents of a trace in canonical order, and the prefixes that they share.

Shape suffixes: S sequences, C clusters.
"""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe_probe.analysis.reading import index
from moe_probe.analysis.reading.index import TraceIndex, subject_names
from moe_probe.trace import LayerSpec, TraceWriter, open_trace
from moe_probe.trace.schema import Sequence

LAYER = LayerSpec(layer=0, num_experts=4, top_k=1)
Key = tuple[str, str, int, int]
"""Task, subject, 0 for a prefix and 1 for a document, and the document."""


def index_of(
    path: Path, facts: list[dict[str, Any]], correct: dict[tuple[str, int], bool] | None = None
) -> TraceIndex:
    """Index sequences of six tokens, two of them prefix unless said otherwise."""
    writer = TraceWriter(path, layers=[LAYER])
    for fact in facts:
        fact = {"task": "t", "prefix_end": 2, "num_tokens": 6, **fact}
        sequence = Sequence(sequence_id=writer.next_sequence_id(), **fact)
        own = sequence.num_tokens - sequence.prefix_tokens
        writer.write(sequence, writer.layout.pack([np.zeros((own, 1), int)]))
    writer.close(correct=correct)
    return TraceIndex.of(open_trace(path))


def keys(found: TraceIndex) -> list[Key]:
    split = [key.split("\x1f") for key in found.clusters.keys]
    return [(task, subject, int(kind), int(doc)) for task, subject, _, kind, doc, _ in split]


def many(documents: int, seed: int = 0) -> list[dict[str, Any]]:
    """Documents of three subjects in random order, some asked twice; each shares a prefix."""
    rng = np.random.default_rng(seed)
    facts: list[dict[str, Any]] = []
    owners: dict[str, int] = {}
    for number in rng.permutation(documents).tolist():
        subject = ("law", "anatomy", "art")[number % 3]
        for _ in range(1 + number % 2):
            fact = {"subject": subject, "doc_id": number}
            if subject in owners:
                fact |= {"prefix_id": owners[subject], "prefix_tokens": 2, "new_from": 2}
            owners.setdefault(subject, len(facts))
            facts.append(fact)
    return facts


@pytest.mark.parametrize("seed", [0, 1])
def test_documents_are_in_canonical_order_behind_their_prefix(tmp_path: Path, seed: int) -> None:
    facts = many(17, seed)
    found = index_of(tmp_path / "trace", facts)
    documents = {("t", fact["subject"], 1, fact["doc_id"]) for fact in facts}
    prefixes = {("t", fact["subject"], 0, 0) for fact in facts}
    expected = sorted(documents | prefixes)
    assert keys(found) == expected
    clusters = found.clusters
    assert clusters.is_prefix_C.tolist() == [kind == 0 for _, _, kind, _ in expected]
    assert [found.groups[g][1] for g in clusters.group_C] == [key[1] for key in expected]
    assert clusters.documents_C.tolist() == [1] * len(expected)
    for fact, own, prefix in zip(facts, found.cluster_S, found.prefix_cluster_S, strict=True):
        assert expected[own] == ("t", fact["subject"], 1, fact["doc_id"])
        assert expected[prefix] == ("t", fact["subject"], 0, 0)
    assert found.leads_S.all()


def test_order_and_keys_do_not_depend_on_the_order_of_recording(tmp_path: Path) -> None:
    one, other = (index_of(tmp_path / str(seed), many(11, seed)) for seed in (0, 1))
    assert one.clusters.keys == other.clusters.keys


def test_a_prefix_of_its_own_stays_with_its_document(tmp_path: Path) -> None:
    """As examples that are drawn anew for every document; one of three may repeat another's."""
    facts = [
        {"subject": "own", "doc_id": 0, "new_from": 0},
        {"subject": "own", "doc_id": 1, "new_from": 1},
        {"subject": "own", "doc_id": 2, "new_from": 2},
        {"subject": "same", "doc_id": 0, "new_from": 0},
        {"subject": "same", "doc_id": 1, "new_from": 2},
        {"subject": "none", "doc_id": 0, "prefix_end": 0},
    ]
    found = index_of(tmp_path / "trace", facts)
    assert keys(found) == [
        ("t", "none", 1, 0),
        *[("t", "own", 1, number) for number in range(3)],
        ("t", "same", 0, 0),
        *[("t", "same", 1, number) for number in range(2)],
    ]
    assert found.prefix_cluster_S.tolist() == [-1, -1, -1, 4, 4, -1]
    assert found.cluster_S.tolist() == [1, 2, 3, 5, 6, 0]


def test_sequences_without_a_document_are_clusters_of_their_own(tmp_path: Path) -> None:
    found = index_of(tmp_path / "trace", [{"prefix_end": 0}, {"prefix_end": 0}, {"doc_id": 0}])
    assert found.cluster_S.tolist() == [1, 2, 0]
    assert keys(found) == [("t", "", 1, 0)] * 3
    assert len(set(found.clusters.keys)) == 3


def test_equal_subjects_of_two_tasks_are_two(tmp_path: Path) -> None:
    facts = [
        {"task": t, "subject": s, "doc_id": 0} for t, s in (("b", "x"), ("a", "y"), ("a", "x"))
    ]
    found = index_of(tmp_path / "trace", facts)
    assert [key[:2] for key in keys(found) if key[2]] == [("a", "x"), ("a", "y"), ("b", "x")]


def test_answers_belong_to_documents(tmp_path: Path) -> None:
    facts = many(9)
    correct = {("t", number): number % 3 == 0 for number in range(7)}
    found = index_of(tmp_path / "trace", facts, correct)
    wanted = [
        (1, int(correct[task, doc])) if kind and (task, doc) in correct else (0, 0)
        for task, _, kind, doc in keys(found)
    ]
    answers = zip(found.clusters.answered_C, found.clusters.right_C, strict=True)
    assert list(answers) == wanted
    assert {(0, 0), (1, 0), (1, 1)} == set(wanted)


@pytest.mark.parametrize("most", [6, 9, 20, 40])
def test_of_too_many_documents_neighbours_of_one_subject_are_grouped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    facts = many(37)
    correct = {("t", number): number < 25 for number in range(31)}
    whole = index_of(tmp_path / "whole", facts, correct)
    monkeypatch.setattr(index, "MAX_CLUSTERS", most)
    found = index_of(tmp_path / "grouped", facts, correct)
    size = -(-len(whole.clusters) // most)
    expected: list[list[Key]] = []
    for _, group in groupby(keys(whole), key=lambda key: key[:3]):
        members = list(group)
        expected += [members[n : n + size] for n in range(0, len(members), size)]
    assert len(found.clusters) == len(expected) < most + 6
    assert found.clusters.documents_C.tolist() == list(map(len, expected))
    assert keys(found) == [members[0] for members in expected]
    assert found.clusters.is_prefix_C.tolist() == [members[0][2] == 0 for members in expected]
    of = {key: number for number, members in enumerate(expected) for key in members}
    for fact, own, prefix in zip(facts, found.cluster_S, found.prefix_cluster_S, strict=True):
        assert own == of["t", fact["subject"], 1, fact["doc_id"]]
        assert prefix == of["t", fact["subject"], 0, 0]
    firsts = {members[0] for members in expected}
    leads = [("t", fact["subject"], 1, fact["doc_id"]) in firsts for fact in facts]
    assert found.leads_S.tolist() == leads
    answers = [
        [correct[task, doc] for task, _, kind, doc in members if kind and doc < 31]
        for members in expected
    ]
    assert found.clusters.answered_C.tolist() == list(map(len, answers))
    assert found.clusters.right_C.tolist() == list(map(sum, answers))


def test_an_empty_trace_has_no_clusters(tmp_path: Path) -> None:
    found = index_of(tmp_path / "trace", [])
    assert len(found.clusters) == len(found.cluster_S) == len(found.leads_S) == 0


def test_names_of_subjects_are_distinct_and_never_empty() -> None:
    assert subject_names([("", "", ""), ("t", "", ""), ("u", "law", "a")]) == (
        "(no subject)",
        "t",
        "law",
    )
    assert subject_names([("", "", ""), ("t", "law", ""), ("u", "law", "")]) == (
        "/",
        "t/law",
        "u/law",
    )
