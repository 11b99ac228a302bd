"""Names of lm-eval tasks and groups, resolved before a model or a data set is touched."""

from __future__ import annotations

import difflib
import logging
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from moe_probe.errors import UsageError
from moe_probe.evaluation.mmlu import prepared_subjects
from moe_probe.evaluation.mmlu_tasks import (
    stock_directory,
    stock_index,
    subject_areas,
    task_group,
)
from moe_probe.evaluation.sample import SAMPLE_TASK, sample_directory
from moe_probe.evaluation.task_names import TaskFacts, facts_of, leaves_of

if TYPE_CHECKING:
    from lm_eval.api.group import Group
    from lm_eval.api.task import Task
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._index import Entry


@dataclass(frozen=True, kw_only=True)
class TaskPlan:
    """The tasks of one evaluation."""

    manager: TaskManager
    """lm-eval's task manager, which knows every name of the plan."""
    names: list[str]
    """Tasks and groups, as `simple_evaluate` takes them."""
    facts: dict[str, TaskFacts]
    """Every leaf task, by the name that lm-eval gives its requests."""

    def load(self, num_fewshot: int | None = None) -> list[Task | Group]:
        """Load the data sets and return the tasks, which `simple_evaluate` takes in place of names.

        Raises UsageError where a data set is neither on this machine nor reachable, or has fewer
        examples than `num_fewshot`, and for the rare group whose tasks lm-eval runs under another
        name.
        """
        try:
            with _without_progress_bars():
                loaded = self.manager.load(self.names)
        except (OSError, ValueError, ImportError, TypeError) as error:
            cause = str(error).strip().split("\n")[0].rstrip(".")
            advice = "Connect to the network once, or pass --include-path with local tasks."
            if any(name.startswith("mmlu") for name in self.facts):
                advice = (
                    "Without a network, make an offline copy with "
                    "`moe-probe mmlu prepare --src DIR --out COPY` and pass --mmlu-dir COPY."
                )
            raise UsageError(
                f"The data of {', '.join(self.names)} cannot be loaded "
                f"({type(error).__name__}: {cause}). {advice}"
            ) from error
        if unnamed := loaded["tasks"].keys() - self.facts.keys():
            raise UsageError(
                f"lm-eval runs {', '.join(self.names)} as {', '.join(sorted(unnamed))}, "
                "which does not say what the tasks are. Name the tasks themselves."
            )
        for name, task in loaded["tasks"].items():
            _refuse_fewshot(name, task, num_fewshot or 0)
        inner = {child for group in loaded.get("group_map", {}).values() for child in group}
        top = {**loaded["tasks"], **loaded.get("groups", {})}
        return [item for name, item in top.items() if name not in inner]


def _refuse_fewshot(name: str, task: Task, number: int) -> None:
    sampler = getattr(task, "sampler", None)
    # A task of no examples has none, whatever is asked for.
    if sampler is None or task.get_config("num_fewshot") == 0:
        return
    # A document is no example of itself.
    is_among = task.fewshot_cfg.split == task.config.test_split
    most = max(len(sampler.df) - is_among, 0)
    if number > most:
        raise UsageError(
            f"--num-fewshot {number} is more than the {most} examples that {name} has. "
            "Ask for fewer."
        )


def load_tasks(
    names: Sequence[str], *, mmlu_dir: Path | None = None, include_path: Path | None = None
) -> TaskPlan:
    """Resolve task and group names, each possibly several joined by commas.

    `mmlu_sample` is the bundled sample; with `mmlu_dir` the stock MMLU tasks read that offline
    copy; `include_path` has further task configurations. No data set is loaded. Raises UsageError
    for an unknown name (with near matches), a subject the copy lacks, two names that share a task,
    and where lm-eval is not installed.
    """
    wanted = list(dict.fromkeys(part.strip() for name in names for part in name.split(",")))
    wanted = [name for name in wanted if name]
    if not wanted:
        raise UsageError("No task is named. Pass --task, for example --task mmlu.")
    if include_path is not None and not include_path.is_dir():
        raise UsageError(f"--include-path {include_path} is not a directory.")
    copy = mmlu_dir
    if SAMPLE_TASK in wanted:
        if mmlu_dir is not None:
            raise UsageError(f"{SAMPLE_TASK} reads the bundled questions. Leave out --mmlu-dir.")
        copy = sample_directory()
    stock = stock_index()
    if mmlu_dir is not None:
        _refuse_uncovered(wanted, stock, mmlu_dir)
    manager = _manager(wanted, copy, include_path)
    _refuse_unknown(wanted, manager)
    index = manager.task_index
    leaves = [leaf for name in wanted for leaf in leaves_of(name, index)]
    if shared := [leaf for leaf, count in Counter(leaves).items() if count > 1]:
        raise UsageError(
            f"More than one of {', '.join(wanted)} holds the task {shared[0]}. "
            "Record them in separate runs."
        )
    areas = subject_areas(stock)
    facts = {leaf: facts_of(leaf, index, areas) for leaf in leaves}
    return TaskPlan(manager=manager, names=wanted, facts=facts)


def all_task_names() -> list[str]:
    """Return every task and group name, lm-eval's and the bundled sample's, sorted.

    Raises UsageError where lm-eval is not installed.
    """
    stock_directory()
    from lm_eval.tasks import TaskManager

    return sorted([SAMPLE_TASK, *TaskManager().all_tasks])


def _manager(wanted: list[str], copy: Path | None, include_path: Path | None) -> TaskManager:
    """Index the tasks: only MMLU and `include_path` where that holds every name, else all."""
    from lm_eval.tasks import TaskManager

    own = [] if include_path is None else [include_path]
    with tempfile.TemporaryDirectory() as folder, _without_override_warnings():
        into = Path(folder).resolve()
        if copy is None:
            manager = TaskManager(include_path=[stock_directory(), *own], include_defaults=False)
        else:
            task_group(copy, into, name=SAMPLE_TASK if SAMPLE_TASK in wanted else "mmlu")
            manager = TaskManager(include_path=[into, *own], include_defaults=False)
        if not all(name in manager.task_index for name in wanted):
            manager = TaskManager(include_path=[into, *own])
        for entry in manager.task_index.values():
            if entry.yaml_path is not None and entry.yaml_path.parent == into:
                # The entry holds the whole configuration; lm-eval would read the file again.
                entry.yaml_path = None
    return manager


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    """Spare the terminal the two bars that `datasets` draws for every task it reads."""
    import datasets

    hidden = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not hidden:
            datasets.enable_progress_bars()


@contextmanager
def _without_override_warnings() -> Iterator[None]:
    """Keep lm-eval from warning that MMLU tasks were replaced, which is what was asked for."""

    def other(record: logging.LogRecord) -> bool:
        return not (record.args and str(record.args[0]).startswith("mmlu"))  # type: ignore[index]

    logger = logging.getLogger("lm_eval.tasks._index")
    logger.addFilter(other)
    try:
        yield
    finally:
        logger.removeFilter(other)


def _refuse_uncovered(wanted: list[str], stock: Mapping[str, Entry], copy: Path) -> None:
    subjects = prepared_subjects(copy)
    own = {f"mmlu_{subject}" for subject in subjects}
    served = {name for name in wanted if name in own}
    for name in wanted:
        if name in stock:
            if not own.intersection(leaves_of(name, stock)) and name != "mmlu":
                have = ", ".join(sorted(subjects))
                raise UsageError(f"{copy} has no questions of {name}. It has: {have}.")
            served.add(name)
    if not served:
        raise UsageError(
            f"--mmlu-dir serves mmlu, its areas and its subjects, and {', '.join(wanted)} "
            "is none of them. Leave it out."
        )


def _refuse_unknown(wanted: list[str], manager: TaskManager) -> None:
    for name in wanted:
        if name not in manager.task_index:
            near = difflib.get_close_matches(name, [SAMPLE_TASK, *manager.all_tasks], n=3)
            hint = f"Near matches: {', '.join(near)}. " if near else ""
            raise UsageError(
                f"No task is called {name!r}. {hint}List them: moe-probe ls tasks {name[:4]}"
            )
