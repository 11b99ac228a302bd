"""Documents are paired by task, subject and number, and by nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe_probe.analysis.comparison import CompareSettings, compare
from moe_probe.analysis.comparison.documents import document_keys, draws, matched
from moe_probe.analysis.reading import index
from moe_probe.analysis.reading.rules import Rule
from moe_probe.analysis.reading.source import Source
from moe_probe.trace import LayerSpec, TraceWriter, open_trace

LAYERS = [LayerSpec(layer=0, num_experts=6, top_k=2)]
FEW = CompareSettings(rule=Rule.RAW, replicates=5)


def write(path: Path, documents: list[tuple[str, str, str, int]], **facts: Any) -> Path:
    """Write sequences of (task, subject, area, number)."""
    rng = np.random.default_rng(0)
    with TraceWriter(path, layers=LAYERS) as writer:
        for task, subject, area, number in documents:
            ids = rng.random((9, 6)).argsort(axis=1)[:, :2]
            names: Any = {"task": task, "subject": subject, "area": area, "doc_id": number}
            writer.add([ids], **names, **facts)
    return path


def keys(path: Path, number: int) -> list[str]:
    found = Source(open_trace(path)).index
    return document_keys(found.clusters, found.groups, number)


def test_documents_are_paired_by_name(tmp_path: Path) -> None:
    first = write(tmp_path / "a", [("t", "x", "stem", 3), ("t", "x", "stem", 1), ("u", "", "", 1)])
    second = write(tmp_path / "b", [("t", "x", "other", 1), ("t", "y", "", 3), ("u", "", "", 1)])
    pairs = matched(keys(first, 0), keys(second, 1))
    # In canonical order: t/x/1, t/x/3, u/1 and t/x/1, t/y/3, u/1; the area is no part of a name.
    assert pairs.first_P.tolist() == [0, 2]
    assert pairs.second_P.tolist() == [0, 2]
    assert compare([first, second], FEW).table("traces")["paired_documents"][1] == 2


def test_documents_without_number_are_paired_with_nothing(tmp_path: Path) -> None:
    paths = [write(tmp_path / name, [("", "", "", -1)] * 3) for name in "ab"]
    assert not len(matched(keys(paths[0], 0), keys(paths[1], 1)))
    assert matched(keys(paths[0], 0), keys(paths[0], 0)).first_P.tolist() == [0, 1, 2]
    found = compare(paths, FEW)
    assert found.table("traces")["paired_documents"][1] == 0
    # The same selections, and still no pair: nobody knows.
    assert (found.table("experts")["ci_high"] > 0).any()


def test_subjects_are_paired_by_task_too(tmp_path: Path) -> None:
    """One trace has a second task with a subject of that name, and another name for a third."""
    first = write(tmp_path / "a", [("t", "x", "", 1), ("t", "y", "", 2), ("old", "z", "", 3)])
    documents = [("t", "x", "area", 1), ("s", "x", "", 4), ("new", "z", "", 3)]
    second = write(tmp_path / "b", documents)
    found = compare([first, second], FEW).table("subjects")
    assert found["subject"].tolist() == ["x"]
    assert found["divergence_bits"].tolist() == [0]
    # Where no name occurs twice, tasks may be called differently.
    third = write(tmp_path / "c", [("new", "z", "", 3), ("t", "x", "", 1)])
    assert compare([first, third], FEW).table("subjects")["subject"].tolist() == ["z", "x"]


def test_a_prefix_is_paired_and_is_no_document(tmp_path: Path) -> None:
    documents = [("t", "x", "", number) for number in range(4)]
    paths = [write(tmp_path / name, documents, prefix_end=5, new_from=5) for name in "ab"]
    assert len(matched(keys(paths[0], 0), keys(paths[1], 1))) == 5
    table = compare(paths, FEW).table("traces")
    assert table["documents"].tolist() == [4, 4]
    assert table["paired_documents"][1] == 4


def test_clusters_of_several_documents_are_equal_as_a_whole_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "MAX_CLUSTERS", 4)
    documents = [("t", "x", "", number) for number in range(8)]
    paths = [write(tmp_path / name, documents) for name in "ab"]
    fewer = write(tmp_path / "c", documents[:7])
    assert len(matched(keys(paths[0], 0), keys(paths[1], 1))) == 4
    assert not len(matched(keys(paths[0], 0), keys(fewer, 1)))
    assert compare(paths, FEW).table("traces")["paired_documents"][1] == 8


def test_the_same_documents_are_drawn_whatever_their_order() -> None:
    names = [f"t{number}" for number in range(40)]
    first_BC, second_BC = draws(names, 20, 3), draws(names[::-1], 20, 3)
    np.testing.assert_array_equal(first_BC, second_BC[:, ::-1])
    assert (draws(names, 20, 4) != first_BC).any()
