"""How long each request really was: the scheduler knows, and tells the workers on its own way.

Rows that a worker ran need not belong to the answer: rejected drafts, and what an asynchronous
scheduler ran before it saw the end. Only the scheduler's side knows the final length.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

_ATTRIBUTE = "moe_probe_lengths"
# Of requests that ended, until a step tells the workers; ids are random, so engines can share it.
_unsent: dict[str, int] = {}


def install() -> None:
    """Make vLLM's scheduler send, with the requests that ended, their lengths.

    Raises ImportError or AttributeError where this vLLM has no such scheduler.
    """
    from vllm.v1.core.sched.scheduler import Scheduler

    if getattr(Scheduler, "moe_probe_is_installed", False):
        return
    free, schedule = Scheduler._free_request, Scheduler.schedule

    def free_request(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        # The last sampled token is not run any more, and an aborted prompt was not run to its end.
        is_answered = request.num_output_tokens > 0
        length = min(request.num_tokens - is_answered, request.num_computed_tokens)
        _unsent[request.request_id] = int(length)
        return free(self, request, *args, **kwargs)

    def schedule_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = schedule(self, *args, **kwargs)
        setattr(output, _ATTRIBUTE, unsent_lengths(output.finished_req_ids))
        return output

    Scheduler._free_request = free_request
    Scheduler.schedule = schedule_step
    Scheduler.moe_probe_is_installed = True


def unsent_lengths(names: Iterable[str]) -> dict[str, int]:
    """Take the lengths of those requests that ended and that no step has told the workers of.

    A worker in the scheduler's own process has to ask, since an engine there takes no step after
    its last request. Any other worker finds none here, and is told.
    """
    return {name: _unsent.pop(name) for name in list(names) if name in _unsent}


def ended_requests(scheduler_output: Any) -> dict[str, int | None]:
    """The requests that ended before a step, with the tokens each ran, None where unknown."""
    lengths = getattr(scheduler_output, _ATTRIBUTE, {})
    return {name: lengths.get(name) for name in sorted(scheduler_output.finished_req_ids)}
