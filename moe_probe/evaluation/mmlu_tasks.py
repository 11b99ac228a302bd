"""lm-eval's own MMLU tasks, and how to make them read an offline copy."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_probe.errors import UsageError
from moe_probe.evaluation.mmlu import prepared_subjects

if TYPE_CHECKING:
    from lm_eval.tasks._index import Entry


def stock_directory() -> Path:
    """Return the folder of lm-eval's mmlu configurations.

    Raises UsageError where lm-eval is not installed.
    """
    try:
        import lm_eval.tasks
    except ImportError as error:
        raise UsageError(
            f'Evaluation needs lm-eval ({error}). Install it: pip install "moe-probe[hf]"'
        ) from error
    return Path(lm_eval.tasks.__file__).parent / "mmlu" / "default"


def stock_index() -> dict[str, Entry]:
    """Return lm-eval's index of mmlu, its four areas and its 57 subjects, by name."""
    directory = stock_directory()
    from lm_eval.tasks import TaskManager

    # Only this folder: indexing all of lm-eval takes 15 s, this takes 0.05 s.
    index: dict[str, Entry] = TaskManager(include_path=directory, include_defaults=False).task_index
    return index


def subject_areas(stock: Mapping[str, Entry]) -> dict[str, str]:
    """Return the area of each of the 57 subjects: stem, humanities, social sciences, other."""
    areas = {}
    for area in _areas(stock):
        for tag in stock[area].cfg["task"]:
            for task in stock[tag].tags:
                areas[stock[task].cfg["dataset_name"]] = stock[area].cfg["group_alias"]
    return areas


def task_group(prepared_dir: Path, into: Path, *, name: str = "mmlu") -> Path:
    """Write configurations that make lm-eval's MMLU tasks read an offline copy.

    They go into the folder `into`, an include path for lm-eval. Every subject of the copy gets its
    task, `mmlu_<subject>`, and every area that has one gets its group; a subject that lm-eval does
    not know gets a task of the same form outside the areas. Returns the file of the group over
    all, called `name`. Raises UsageError where `prepared_dir` is not an offline copy.
    """
    subjects = prepared_subjects(prepared_dir)
    stock = stock_index()
    place = {"dataset_path": str(prepared_dir.resolve())}
    members: dict[str, list[str]] = {area: [] for area in _areas(stock)}
    others = []
    for subject in sorted(subjects):
        task = f"mmlu_{subject}"
        if task in stock:
            config = {"include": str(stock[task].yaml_path), **place}
            area = next(a for a in members if stock[task].tags & set(stock[a].cfg["task"]))
            members[area].append(task)
        else:
            template = stock_directory() / "_default_template_yaml"
            config = {"include": str(template), **_own_task(task, subject), **place}
            others.append(task)
        _write(into / f"{task}.yaml", config)
    areas = {area: tasks for area, tasks in members.items() if tasks}
    for area, tasks in areas.items():
        _write(into / f"_{area}.yaml", _group(area, tasks, stock[area].cfg))
    path = into / f"_{name}.yaml"
    _write(path, _group(name, [*areas, *others], stock["mmlu"].cfg))
    return path


def _areas(stock: Mapping[str, Entry]) -> list[str]:
    areas: list[str] = stock["mmlu"].cfg["task"]
    return areas


def _group(name: str, tasks: list[str], like: Mapping[str, Any]) -> dict[str, Any]:
    """Describe a group as its stock namesake, with its size-weighted accuracy, over `tasks`."""
    kept = ("group_alias", "aggregate_metric_list", "metadata")
    return {"group": name, "task": tasks, **{key: like[key] for key in kept if key in like}}


def _own_task(task: str, subject: str) -> dict[str, str]:
    topic = subject.replace("_", " ")
    about = f"The following are multiple choice questions (with answers) about {topic}.\n\n"
    return {"task": task, "task_alias": topic, "dataset_name": subject, "description": about}


def _write(path: Path, config: Mapping[str, Any]) -> None:
    # JSON is YAML with every string quoted.
    path.write_text(json.dumps(config, indent=1), encoding="utf-8")
