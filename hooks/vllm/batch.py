"""What one engine step ran, read from either of vLLM's model runners.

Shape suffixes: T tokens, Q requests.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

from moe_probe.errors import CaptureError


class StepBatch(NamedTuple):
    """Requests of a step in the order of their rows; the tensors are the engine's own."""

    request_ids: list[str]
    counts_Q: np.ndarray
    """Tokens of each request, int64."""
    position_T: torch.Tensor
    token_id_T: torch.Tensor


def read_batch(runner: Any, num_tokens: int) -> StepBatch:
    """Read what the runner's last `execute_model` ran.

    Raises:
        CaptureError: its rows and its requests do not fit each other.
    """
    state = getattr(runner, "execute_model_state", None)
    # The newer runner keeps its batch there on every pipeline stage, the older one never does.
    batch = getattr(state, "input_batch", None)
    if batch is not None:
        starts_Q, positions, tokens = batch.query_start_loc_np, batch.positions, batch.input_ids
    else:
        batch = runner.input_batch
        starts_Q, tokens = runner.query_start_loc.np, runner.input_ids.gpu
        positions = runner.positions
    request_ids = list(batch.req_ids)
    counts_Q = np.diff(np.asarray(starts_Q[: len(request_ids) + 1])).astype(np.int64)
    if int(counts_Q.sum()) != num_tokens:
        raise CaptureError(
            f"A step ran {num_tokens} tokens, but its requests have {int(counts_Q.sum())}, so its "
            "rows cannot be assigned. Turn off adaptive speculation and context parallelism."
        )
    return StepBatch(request_ids, counts_Q, positions[:num_tokens], tokens[:num_tokens])


class NewRequest(NamedTuple):
    """A request the engine schedules for the first time."""

    request_id: str
    num_prompt_tokens: int
    num_cached: int
    """Leading tokens that the engine has in its prefix cache and does not run."""
    prompt: list[int] | None
    """Its vocabulary ids; None where embeddings are run instead of some or all of them."""
    tags: dict[str, Any]


def new_requests(scheduler_output: Any) -> list[NewRequest]:
    """The requests that a step schedules for the first time, or again after a preemption."""
    return [
        NewRequest(
            request_id=data.req_id,
            num_prompt_tokens=int(data.prompt_len),
            num_cached=int(data.num_computed_tokens),
            prompt=None if data.mm_features else data.prompt_token_ids,
            tags=dict(getattr(data.sampling_params, "extra_args", None) or {}),
        )
        for data in scheduler_output.scheduled_new_reqs
    ]
