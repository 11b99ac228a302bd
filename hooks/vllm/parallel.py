"""What several ranks mean for a recording: which rows are this rank's, who writes, what is refused.

Shape suffixes: T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from moe_probe.errors import CaptureError


@dataclass(frozen=True)
class Place:
    """Where a worker stands among the ranks of its engine."""

    tensor_rank: int
    stage: int
    num_stages: int
    data_rank: int
    num_data_ranks: int

    @property
    def is_stage(self) -> bool:
        """Whether this worker has some of the layers only."""
        return self.num_stages > 1

    @property
    def writes(self) -> bool:
        """Whether this worker records: routing is the same on all tensor-parallel ranks."""
        return self.tensor_rank == 0


def find_place(config: Any) -> Place:
    """Read the place from vLLM's groups.

    Args:
        config: The engine's VllmConfig.

    Raises:
        CaptureError: the engine splits tokens in a way that cannot be put together again.
    """
    from vllm.distributed.parallel_state import get_pp_group, get_tp_group

    parallel = config.parallel_config
    refused = {
        "dual batch overlap": bool(getattr(parallel, "use_ubatching", False)),
        "prefill context parallelism": _size(parallel, "prefill_context_parallel_size") > 1,
        "decode context parallelism": _size(parallel, "decode_context_parallel_size") > 1,
    }
    for name, is_used in refused.items():
        if is_used:
            raise CaptureError(f"The engine runs with {name}, which splits tokens. Turn it off.")
    pipeline = get_pp_group()
    return Place(
        tensor_rank=int(get_tp_group().rank_in_group),
        stage=int(pipeline.rank_in_group),
        num_stages=int(pipeline.world_size),
        data_rank=int(parallel.data_parallel_rank),
        num_data_ranks=int(parallel.data_parallel_size),
    )


def _size(parallel: Any, name: str) -> int:
    return int(getattr(parallel, name, 1) or 1)


def local_rows(moe_config: Any) -> Callable[[torch.Tensor], slice | None]:
    """Return what says which rows of what a router of the layer is given are this rank's.

    It gives None where that cannot be told.

    Raises:
        CaptureError: each tensor-parallel rank routes a share of the tokens only.
    """
    if getattr(moe_config, "is_sequence_parallel", False):
        raise CaptureError(
            "The engine routes each token on one tensor-parallel rank only (sequence-parallel "
            "experts). Use an all2all backend without it, or one data-parallel rank."
        )
    if moe_config.dp_size <= 1:
        return _all_rows
    rank = int(moe_config.dp_rank)

    def select(rows: torch.Tensor) -> slice | None:
        from vllm.forward_context import get_forward_context

        # Under data parallelism the experts run in an opaque operator, so that this is plain
        # Python; the numbers are on the host.
        metadata = get_forward_context().dp_metadata
        if metadata is None:
            return slice(None)
        return rows_of_rank(metadata.num_tokens_across_dp_cpu.tolist(), rank, len(rows))

    return select


def rows_of_rank(tokens_by_rank: Sequence[int], rank: int, num_rows: int) -> slice | None:
    """Where a rank's rows lie among those a router was given; None if that cannot be told.

    Args:
        tokens_by_rank: Tokens of each data-parallel rank in this step.
        rank: Whose rows are wanted.
        num_rows: Rows the router was given: the rank's own, or those of all ranks, joined.
    """
    own = tokens_by_rank[rank]
    if num_rows == sum(tokens_by_rank):
        start = sum(tokens_by_rank[:rank])
        return slice(start, start + own)
    return slice(0, own) if num_rows == own else None


def _all_rows(rows: torch.Tensor) -> slice | None:
    return slice(None)
