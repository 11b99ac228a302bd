"""The bundled model and sample: sizes, format, and routing with real structure."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from moe_probe.evaluation.tasks import load_tasks
from moe_probe.models import BUNDLED
from moe_probe.trace import Trace, open_trace
from tests.evaluation.record_helpers import record

SAMPLE = BUNDLED["tiny-moe"].parent / "mmlu_sample"
PERMUTATIONS = 200


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    output = tmp_path_factory.mktemp("tiny") / "trace"
    record("tiny-moe", ["mmlu_sample"], output, num_fewshot=0, batch_size="16")
    return open_trace(output)


def read(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def question_counts(trace: Trace, layer: int) -> tuple[np.ndarray, list[str]]:
    """Selections in question tokens [documents, experts], and each document's subject."""
    rows = trace.sequences.to_pylist()
    number = {row["sequence_id"]: index for index, row in enumerate(rows)}
    counts_DN = np.zeros((len(rows), trace.layers[layer].num_experts))
    for block in trace.scan([layer]):
        document_T = np.array([number[i] for i in block.sequence_id_T])
        start_T, stop_T = (
            np.array([row[name] for row in rows])[document_T]
            for name in ("prefix_end", "question_end")
        )
        inside_T = (block.position_T >= start_T) & (block.position_T < stop_T)
        np.add.at(counts_DN, (document_T[inside_T, None], block.topk_ids(layer)[inside_T]), 1)
    return counts_DN, [row["subject"] for row in rows]


def information(counts_DN: np.ndarray, subject_D: np.ndarray) -> float:
    """I(expert; subject) in bits."""
    joint_SN = np.zeros((subject_D.max() + 1, counts_DN.shape[1]))
    np.add.at(joint_SN, subject_D, counts_DN)
    p_SN = joint_SN / joint_SN.sum()
    independent_SN = p_SN.sum(1, keepdims=True) * p_SN.sum(0, keepdims=True)
    seen = p_SN > 0
    return float((p_SN[seen] * np.log2(p_SN[seen] / independent_SN[seen])).sum())


def test_routing_depends_on_the_subject(trace: Trace) -> None:
    chance = np.random.default_rng(0)
    for layer in trace.layers:
        counts_DN, subjects = question_counts(trace, layer)
        assert (counts_DN.sum(0) > 0).all()
        _, subject_D = np.unique(subjects, return_inverse=True)
        observed = information(counts_DN, subject_D)
        null = [information(counts_DN, chance.permutation(subject_D)) for _ in range(PERMUTATIONS)]
        assert observed > 1.15 * np.mean(null)
        assert observed > np.mean(null) + 4 * np.std(null)
        assert observed > max(null)


def test_bundle_is_small_and_says_what_it_is() -> None:
    folder = BUNDLED["tiny-moe"]
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 8_000_000
    assert "knows nothing" in " ".join((folder / "README.md").read_text().split())


def test_sample_has_all_subjects_of_mmlu() -> None:
    subjects = {facts.subject for facts in load_tasks(["mmlu"]).facts.values()}
    letters: Counter[str] = Counter()
    questions = []
    for split, least in (("dev", 5), ("test", 3)):
        files = sorted((SAMPLE / split).glob("*.csv"))
        assert {path.stem.removesuffix(f"_{split}") for path in files} == subjects
        for path in files:
            rows = read(path)
            assert len(rows) >= least
            for row in rows:
                assert len(row) == 6
                assert len(set(row[1:5])) == 4
                letters[row[5]] += 1
                questions.append(row[0])
    assert set(letters) == set("ABCD")
    assert max(letters.values()) < 1.2 * min(letters.values())
    assert len(set(questions)) == len(questions)


def test_sample_is_not_copied_from_mmlu() -> None:
    original = Path(__file__).parents[2] / "shared" / "data" / "mmlu"
    if not original.is_dir():
        pytest.skip("the original MMLU files are not beside the checkout")

    def questions(folder: Path) -> set[str]:
        return {
            " ".join(row[0].lower().split())
            for path in folder.glob("*/*.csv")
            for row in read(path)
        }

    assert not questions(SAMPLE) & questions(original)
