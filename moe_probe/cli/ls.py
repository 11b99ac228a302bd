"""`moe-probe ls`: the names that --model and --task take."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from moe_probe import output


class Kind(StrEnum):
    """What can be listed."""

    MODELS = "models"
    TASKS = "tasks"


def list_names(
    kind: Annotated[Kind, typer.Argument(help="What to list.")],
    search: Annotated[str, typer.Argument(help="Only names that contain this text.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """List the short model names, or the tasks and groups of lm-eval.

    Example: moe-probe ls tasks mmlu
    """
    wanted = search.lower()
    if kind is Kind.MODELS:
        from moe_probe.models import BUNDLED, SHORT_NAMES

        models = {**dict.fromkeys(BUNDLED, "bundled with moe-probe"), **SHORT_NAMES}
        found = {k: v for k, v in models.items() if wanted in k or wanted in v.lower()}
        if as_json:
            output.document(found)
        else:
            output.table(["name", "model"], found.items())
        return
    from moe_probe.evaluation.tasks import all_task_names

    output.note("Reading lm-eval's task list, which takes a while ...")
    names = [name for name in all_task_names() if wanted in name.lower()]
    if as_json:
        output.document(names)
    else:
        for name in names:
            output.result(name)
