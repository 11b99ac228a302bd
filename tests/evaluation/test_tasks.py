from __future__ import annotations

import csv
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import moe_probe
from moe_probe.errors import UsageError
from moe_probe.evaluation.mmlu import prepare
from moe_probe.evaluation.mmlu_tasks import task_group
from moe_probe.evaluation.sample import sample_directory
from moe_probe.evaluation.task_names import TaskFacts
from moe_probe.evaluation.tasks import load_tasks

SAMPLE = Path(moe_probe.__file__).parent / "bundled" / "mmlu_sample"
SIZES = {"stem": 19, "humanities": 13, "social sciences": 12, "other": 13}


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    attempts = []

    def refuse(*args: Any, **kwargs: Any) -> None:
        attempts.append(args)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    # With these set, a library that would reach for the network fails before it tries.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    yield
    # Looked at here, for the libraries swallow the error and go on.
    assert attempts == []


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    cache = tmp_path_factory.getbasetemp() / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    return cache


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """An offline copy with two areas, and a subject that lm-eval does not have."""
    for number, subject in enumerate(["anatomy", "astronomy", "sociology", "home_brewing"]):
        for split, rows in (("dev", 5), ("test", number + 1)):
            path = tmp_path / "src" / split / f"{subject}_{split}.csv"
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("w", newline="") as stream:
                text = [f"{subject} {split} {i}?" for i in range(rows)]
                csv.writer(stream).writerows([each, "p", "q", "r", "s", "C"] for each in text)
    prepare(tmp_path / "src", tmp_path / "copy")
    return tmp_path / "copy"


def test_mmlu_has_57_subjects_in_four_areas() -> None:
    facts = load_tasks(["mmlu"]).facts
    assert Counter(fact.area for fact in facts.values()) == SIZES
    assert facts["mmlu_anatomy"] == TaskFacts(task="mmlu_anatomy", subject="anatomy", area="stem")
    assert facts["mmlu_sociology"].area == "social sciences"
    assert facts["mmlu_professional_law"].area == "humanities"
    assert facts["mmlu_professional_law"].subject == "professional_law"
    assert facts["mmlu_nutrition"].area == "other"


def test_a_single_subject_keeps_its_area() -> None:
    assert [f.area for f in load_tasks(["mmlu_anatomy"]).facts.values()] == ["stem"]


def test_names_are_split_at_commas_and_repeats_dropped() -> None:
    plan = load_tasks(["mmlu_stem, mmlu_nutrition", "mmlu_virology", "mmlu_stem"])
    assert plan.names == ["mmlu_stem", "mmlu_nutrition", "mmlu_virology"]
    assert len(plan.facts) == 21


@pytest.mark.usefixtures("no_network")
def test_copy_serves_the_subjects_it_has(copy: Path) -> None:
    plan = load_tasks(["mmlu"], mmlu_dir=copy)
    assert {f.subject: f.area for f in plan.facts.values()} == {
        "anatomy": "stem",
        "astronomy": "stem",
        "sociology": "social sciences",
        "home_brewing": "",
    }
    (group,) = plan.load()
    assert group.name == "mmlu"
    assert group.child_names == ["mmlu_stem", "mmlu_social_sciences", "mmlu_home_brewing"]
    tasks = {task.task_name: task for task in group.get_all_tasks()}
    assert {name: len(task.test_docs()) for name, task in tasks.items()} == {
        "mmlu_anatomy": 1,
        "mmlu_astronomy": 2,
        "mmlu_sociology": 3,
        "mmlu_home_brewing": 4,
    }
    assert "about home brewing." in tasks["mmlu_home_brewing"].config.description


@pytest.mark.usefixtures("no_network")
def test_copy_serves_single_names(copy: Path) -> None:
    items = load_tasks(["mmlu_stem,mmlu_sociology,mmlu_home_brewing"], mmlu_dir=copy).load()
    names = {getattr(item, "task_name", None) or item.name for item in items}
    assert names == {"mmlu_stem", "mmlu_sociology", "mmlu_home_brewing"}


@pytest.mark.usefixtures("no_network")
def test_sample_runs_offline_under_stock_names() -> None:
    import lm_eval
    from lm_eval.api.model import LM

    class AlwaysB(LM):  # type: ignore[misc]  # lm-eval has no types
        def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
            return [(-1.0 if request.args[1] == " B" else -2.0, False) for request in requests]

        def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
            raise NotImplementedError

        def generate_until(self, requests: list[Any]) -> list[str]:
            raise NotImplementedError

    plan = load_tasks(["mmlu_sample"])
    results = lm_eval.simple_evaluate(
        model=AlwaysB(),
        tasks=plan.load(),
        task_manager=plan.manager,
        limit=1,
        num_fewshot=5,
        bootstrap_iters=0,
    )
    assert set(results["samples"]) == set(plan.facts)
    assert Counter(fact.area for fact in plan.facts.values()) == SIZES
    scores = results["results"]
    areas = ["mmlu_stem", "mmlu_humanities", "mmlu_social_sciences", "mmlu_other"]
    assert [scores[area]["sample_len"] for area in areas] == list(SIZES.values())
    assert scores["mmlu_sample"]["sample_len"] == 57
    files = [path.read_text().splitlines() for path in SAMPLE.glob("test/*.csv")]
    right = sum(next(csv.reader(lines))[5] == "B" for lines in files)
    assert 0 < right < 57
    assert scores["mmlu_sample"]["acc,none"] == pytest.approx(right / 57)


def test_sample_is_prepared_once(own_cache: Path) -> None:
    directory = sample_directory()
    assert directory.parent == own_cache / "moe-probe"
    before = (directory / "README.md").stat().st_mtime_ns
    assert sample_directory() == directory
    assert (directory / "README.md").stat().st_mtime_ns == before
    assert [path.name for path in directory.parent.iterdir()] == [directory.name]


def test_unknown_task_shows_near_matches() -> None:
    with pytest.raises(UsageError, match=r"No task is called 'mmlu_sampel'\. Near .*mmlu_sample,"):
        load_tasks(["mmlu_sampel"])


def test_task_of_an_include_path(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("task: own_task\ndataset_path: nowhere\n")
    facts = load_tasks(["own_task"], include_path=tmp_path).facts
    assert facts == {"own_task": TaskFacts(task="own_task", subject="own_task", area="")}


def test_names_that_share_a_task() -> None:
    with pytest.raises(UsageError, match="holds the task mmlu_anatomy"):
        load_tasks(["mmlu_stem", "mmlu_anatomy"])


@pytest.mark.parametrize(
    ("names", "complaint"),
    [
        ("mmlu_humanities", r"has no questions of mmlu_humanities\. It has: anatomy, astronomy,"),
        ("mmlu_virology", "has no questions of mmlu_virology"),
        ("arc_easy", "--mmlu-dir serves mmlu, its areas and its subjects, and arc_easy is none"),
        ("mmlu_sample", "reads the bundled questions"),
    ],
)
def test_copy_that_cannot_serve(copy: Path, names: str, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        load_tasks([names], mmlu_dir=copy)


def test_folders_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is not an offline copy of MMLU .*mmlu prepare --src"):
        load_tasks(["mmlu"], mmlu_dir=tmp_path)
    with pytest.raises(UsageError, match="absent is not a directory"):
        load_tasks(["mmlu"], include_path=tmp_path / "absent")
    with pytest.raises(UsageError, match="No task is named"):
        load_tasks([" , "])


def test_data_that_cannot_be_reached_names_the_way_out() -> None:
    with pytest.raises(UsageError) as caught:
        load_tasks(["mmlu_anatomy"]).load()
    message = str(caught.value)
    assert message.startswith("The data of mmlu_anatomy cannot be loaded (")
    assert "`moe-probe mmlu prepare --src DIR --out COPY`" in message
    assert "\n" not in message


def test_group_can_have_another_name(copy: Path, tmp_path: Path) -> None:
    import lm_eval.tasks

    into = tmp_path / "include"
    into.mkdir()
    assert task_group(copy, into, name="mmlu_mine") == into / "_mmlu_mine.yaml"
    manager = lm_eval.tasks.TaskManager(include_path=into, include_defaults=False)
    assert manager.task_index["mmlu_mine"].cfg["aggregate_metric_list"] == [
        {"metric": "acc", "weight_by_size": True}
    ]
    assert len(manager.load(["mmlu_mine"])["tasks"]) == 4
