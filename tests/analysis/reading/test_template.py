"""The rule no-template leaves exactly what a document is about.

Token ids from CONTENT on are content, those below are template; every token selects the expert of
its own id, so that counts of experts are counts of tokens.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe_probe.analysis.reading import index
from moe_probe.analysis.reading.rules import Rule
from moe_probe.analysis.scan import count
from moe_probe.errors import TraceError
from moe_probe.trace import LayerSpec, Trace, TraceWriter, open_trace
from moe_probe.trace.schema import Sequence

LAYER = LayerSpec(layer=4, num_experts=1000, top_k=1)
CONTENT = 300
BOS, HEADER, CUE, ANSWERS = 1, [10, 11, 12], [40, 41], [50, 51, 52, 53]
LABELS = [20, 21, 22, 23]


@dataclass
class Document:
    """One question of a task, in the stretches it has; asked with some of the choices."""

    task: str
    number: int
    prefix: list[int]
    question: list[int]
    cue: list[int]
    choices: list[int]

    @property
    def prompt(self) -> list[int]:
        return self.prefix + self.question + self.cue


def content(rng: np.random.Generator) -> list[int]:
    found: list[int] = rng.integers(CONTENT, LAYER.num_experts, rng.integers(1, 9)).tolist()
    return found


def question(rng: np.random.Generator, labels: list[int] = LABELS) -> list[int]:
    """Text, then each label with a text behind it."""
    return content(rng) + [token for label in labels for token in (label, *content(rng))]


def task_of(
    rng: np.random.Generator,
    name: str,
    documents: int,
    *,
    shots: int = 2,
    header: list[int] = HEADER,
) -> list[Document]:
    """Questions behind a header, a name of the task and examples, which end as questions do."""
    shot_tokens = [t for _ in range(shots) for t in (*question(rng), *CUE, *content(rng))]
    name_tokens = [CONTENT + len(name)]
    prefix = [BOS, *header, *name_tokens, *shot_tokens] if shots else []
    return [
        Document(name, n, prefix, question(rng), CUE, ANSWERS[: 1 + n % 4])
        for n in range(documents)
    ]


def write(path: Path, documents: list[Document], *, token_ids: bool = True) -> Trace:
    """Store a task's prefix once, and a document's prompt once, as recordings do."""
    owners: dict[tuple[object, ...], int] = {}
    seen: set[tuple[int, ...]] = set()
    with TraceWriter(path, layers=[LAYER], segment_tokens=1 << 10) as writer:
        for document in documents:
            prompt, first = document.prompt, len(document.prefix)
            for choice in document.choices:
                tokens = [*prompt, choice]
                shared = [
                    cut
                    for cut in (first, len(prompt))
                    if cut and (document.task, *tokens[:cut]) in owners
                ]
                begin = max(shared, default=0)
                key = (document.task, *tokens[:begin])
                contexts = [tuple(tokens[: n + 1]) for n in range(len(tokens))]
                sequence = Sequence(
                    sequence_id=writer.next_sequence_id(),
                    num_tokens=len(tokens),
                    task=document.task,
                    subject=document.task,
                    doc_id=document.number,
                    prefix_end=first,
                    question_end=len(prompt) - len(document.cue),
                    cue_end=len(prompt),
                    prefix_id=owners[key] if begin else -1,
                    prefix_tokens=begin,
                    new_from=next(n for n, c in enumerate([*contexts, ()]) if c not in seen),
                )
                seen.update(contexts)
                for cut in (first, len(prompt)):
                    owners.setdefault((document.task, *tokens[:cut]), sequence.sequence_id)
                own_T = np.array(tokens[begin:], np.int32)
                rows_TB = writer.layout.pack([own_T[:, None]])
                writer.write(sequence, rows_TB, token_id_T=own_T if token_ids else None)
    return open_trace(path)


def counted(trace: Trace) -> dict[int, int]:
    counts_N = count(trace, Rule.NO_TEMPLATE).layer(LAYER.layer).counts_N
    return {int(token): int(counts_N[token]) for token in np.flatnonzero(counts_N)}


def distinct(documents: list[Document], *, prefixes: bool = True) -> Counter[int]:
    """Content tokens of every distinct context, prefixes once for all their documents."""
    contexts = {
        tuple(document.prompt[: n + 1])
        for document in documents
        for n in range(0 if prefixes else len(document.prefix), len(document.prompt))
    }
    return Counter(context[-1] for context in contexts if context[-1] >= CONTENT)


@pytest.mark.parametrize("seed", [0, 1])
def test_exactly_the_content_of_two_tasks_counts(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    documents = task_of(rng, "t_law", 27) + task_of(rng, "t_artist", 14)
    rng.shuffle(documents)
    trace = write(tmp_path / "trace", documents)
    assert len(trace.routing_parts) > 1
    assert counted(trace) == distinct(documents)
    unique = count(trace).layer(LAYER.layer).counts_N
    assert all(unique[token] for token in (BOS, *HEADER, *LABELS, *CUE, *ANSWERS))


def test_what_all_documents_of_a_lone_subject_begin_with_is_its_template(tmp_path: Path) -> None:
    """Only the first stores the examples; that the others share them does not make all common."""
    documents = task_of(np.random.default_rng(2), "t_law", 25)
    assert counted(write(tmp_path / "trace", documents)) == distinct(documents, prefixes=False)


def test_every_benchmark_has_a_template_of_its_own(tmp_path: Path) -> None:
    """What one calls a label the other may call content."""
    rng = np.random.default_rng(3)
    documents = task_of(rng, "t_law", 20) + task_of(rng, "t_artist", 20)
    others = task_of(rng, "u_law", 20, header=[15]) + task_of(rng, "u_artist", 20, header=[15])
    for number, document in enumerate(others):
        label = [LABELS[0]] if number % 4 else []
        document.question = [CONTENT + 1, *content(rng), *label]
        document.cue = []
    theirs = distinct(others)
    del theirs[CONTENT + 1]  # nothing but a label to this benchmark
    # Three in four of its questions have the other's first label, its examples have them all.
    theirs[LABELS[0]] += 30
    for prefix in (others[0].prefix, others[20].prefix):
        theirs.update(token for token in prefix if token in (*LABELS, *CUE))
    assert counted(write(tmp_path / "trace", documents + others)) == distinct(documents) + theirs


def test_few_documents_have_a_beginning_and_an_end_in_common_but_no_labels(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    documents = task_of(rng, "t_law", 19, shots=0)
    for document in documents:
        document.question = [BOS, *HEADER, *document.question]
    found = counted(write(tmp_path / "few", documents))
    assert found == distinct(documents) + Counter(dict.fromkeys(LABELS, 19))
    documents.append(Document("t_law", 19, [], [BOS, *HEADER, *question(rng)], CUE, [50]))
    assert counted(write(tmp_path / "enough", documents)) == distinct(documents)


@pytest.mark.parametrize(("without", "is_template"), [(1, True), (2, False)])
def test_nearly_all_documents_are_99_in_100(
    tmp_path: Path, without: int, is_template: bool
) -> None:
    rng = np.random.default_rng(5)
    documents = task_of(rng, "t_law", 100, shots=0)
    for document in documents[:without]:
        document.question = question(rng, LABELS[1:])
    expected = distinct(documents)
    if not is_template:
        expected[LABELS[0]] = 100 - without
    assert counted(write(tmp_path / "trace", documents)) == expected


def test_documents_that_share_a_cluster_are_still_documents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Together they nearly always contain a word that half of them have."""
    monkeypatch.setattr(index, "MAX_CLUSTERS", 30)
    rng = np.random.default_rng(6)
    documents = task_of(rng, "t_law", 240, shots=0)
    for document in documents:
        if rng.random() < 0.5:
            document.question.append(CONTENT + 5)
    found = counted(write(tmp_path / "trace", documents))
    assert found == distinct(documents)
    assert found[CONTENT + 5] > 90


def test_without_token_ids_there_is_no_template(tmp_path: Path) -> None:
    documents = task_of(np.random.default_rng(7), "t_law", 3)
    trace = write(tmp_path / "trace", documents, token_ids=False)
    with pytest.raises(TraceError, match="no token ids, which the rule no-template needs"):
        counted(trace)


def test_a_part_without_any_new_context_counts_nothing(tmp_path: Path) -> None:
    """As where an engine runs again what it ran before."""
    with TraceWriter(tmp_path / "trace", layers=[LAYER], segment_tokens=4) as writer:
        for number, new_from in enumerate((0, 4)):
            first = CONTENT + 10 * number
            ids = np.array([BOS, first, first + 1, CUE[0]])
            facts: Any = {"doc_id": number, "question_end": 3, "new_from": new_from}
            writer.add([ids[:, None]], token_ids=ids, **facts)
    trace = open_trace(tmp_path / "trace")
    assert len(trace.routing_parts) == 2
    assert counted(trace) == {CONTENT: 1, CONTENT + 1: 1}
