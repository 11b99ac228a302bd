"""Several ranks: whose rows are whose, who writes, what is refused."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from vllm.distributed import parallel_state

from moe_probe.errors import CaptureError
from moe_probe.hooks.vllm.parallel import Place, find_place, local_rows, rows_of_rank


@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.data())
def test_every_row_of_joined_ranks_belongs_to_one(tokens: list[int], data: st.DataObject) -> None:
    owners = [rank for rank, number in enumerate(tokens) for _ in range(number)]
    for rank, number in enumerate(tokens):
        rows = rows_of_rank(tokens, rank, len(owners))
        assert rows is not None
        assert owners[rows] == [rank] * number
        own = rows_of_rank(tokens, rank, number)
        assert own is not None
        assert list(range(number))[own] == list(range(number))
    other = data.draw(st.integers(0, 60).filter(lambda n: n not in (*tokens, sum(tokens))))
    assert all(rows_of_rank(tokens, rank, other) is None for rank in range(len(tokens)))


def _moe(**changes: Any) -> SimpleNamespace:
    return SimpleNamespace(**{"dp_size": 1, "dp_rank": 0, "is_sequence_parallel": False, **changes})


def test_one_data_parallel_rank_has_all_rows() -> None:
    assert local_rows(_moe())(torch.zeros(7, 2)) == slice(None)


@pytest.mark.parametrize(("num_rows", "expected"), [(12, slice(5, 9)), (4, slice(0, 4)), (7, None)])
def test_the_engine_says_how_many_tokens_each_rank_has(
    num_rows: int, expected: slice | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    metadata = SimpleNamespace(num_tokens_across_dp_cpu=torch.tensor([5, 4, 3]))
    context = SimpleNamespace(dp_metadata=metadata)
    monkeypatch.setattr("vllm.forward_context.get_forward_context", lambda: context)
    assert local_rows(_moe(dp_size=3, dp_rank=1))(torch.zeros(num_rows, 2)) == expected


def test_a_step_without_numbers_is_of_this_rank_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    context = SimpleNamespace(dp_metadata=None)
    monkeypatch.setattr("vllm.forward_context.get_forward_context", lambda: context)
    assert local_rows(_moe(dp_size=3))(torch.zeros(7, 2)) == slice(None)


def test_tokens_spread_over_tensor_parallel_ranks_are_refused() -> None:
    with pytest.raises(CaptureError, match="one tensor-parallel rank only"):
        local_rows(_moe(is_sequence_parallel=True))


def _config(**changes: Any) -> SimpleNamespace:
    parallel = {
        "use_ubatching": False,
        "prefill_context_parallel_size": 1,
        "decode_context_parallel_size": 1,
        "data_parallel_rank": 2,
        "data_parallel_size": 4,
        **changes,
    }
    return SimpleNamespace(parallel_config=SimpleNamespace(**parallel))


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    ranks = {"tensor": 0, "stage": 1}
    tensor = SimpleNamespace(rank_in_group=0, world_size=2)
    monkeypatch.setattr(
        parallel_state,
        "get_tp_group",
        lambda: SimpleNamespace(**{**vars(tensor), "rank_in_group": ranks["tensor"]}),
    )
    monkeypatch.setattr(
        parallel_state,
        "get_pp_group",
        lambda: SimpleNamespace(rank_in_group=ranks["stage"], world_size=3),
    )
    return ranks


def test_a_place_among_ranks(groups: dict[str, int]) -> None:
    place = find_place(_config())
    expected = Place(tensor_rank=0, stage=1, num_stages=3, data_rank=2, num_data_ranks=4)
    assert place == expected
    assert place.writes
    groups["tensor"] = 1
    assert not find_place(_config()).writes


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"use_ubatching": True}, "dual batch overlap"),
        ({"prefill_context_parallel_size": 2}, "prefill context parallelism"),
        ({"decode_context_parallel_size": 2}, "decode context parallelism"),
    ],
)
def test_what_splits_tokens_is_refused(
    changes: dict[str, Any], name: str, groups: dict[str, int]
) -> None:
    with pytest.raises(CaptureError, match=f"runs with {name}, which splits tokens. Turn it off"):
        find_place(_config(**changes))
