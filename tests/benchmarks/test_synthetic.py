"""Synthetic traces are whole, and hold what they are said to hold."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe_probe.analysis.quality import Status, check_trace, failures
from moe_probe.trace import Trace, open_trace

pytestmark = pytest.mark.compiled
KINDS = ("distinct", "5shot")
SHAPES = ("v3", "qwen3", "mixtral")


@pytest.fixture(scope="module")
def routers() -> Any:
    """The routers, whose loops load the compiler."""
    return import_module("benchmarks.support.routers")


def write(path: Path, kind: str, shape: str = "mixtral") -> Trace:
    from benchmarks.synthetic import write_synthetic

    num_tokens = write_synthetic(path, 5000, shape=shape, kind=kind, num_subjects=2)
    trace = open_trace(path)
    assert num_tokens == sum(map(len, trace.scan())) >= 5000
    return trace


def rows_by_sequence(trace: Trace) -> list[np.ndarray]:
    (block,) = trace.scan()
    ids_TB = np.concatenate([block.topk_ids(layer) for layer in trace.layers], axis=1)
    rows_TB = np.column_stack([block.token_id_T, ids_TB])
    return np.split(rows_TB, np.flatnonzero(np.diff(block.sequence_id_T)) + 1)


def test_no_shape_or_kind_is_left_out(routers: Any) -> None:
    from benchmarks import synthetic

    assert tuple(routers.SHAPES) == SHAPES
    assert synthetic.KINDS == KINDS


@pytest.mark.parametrize("shape", SHAPES)
def test_every_check_passes(tmp_path: Path, shape: str) -> None:
    checks = check_trace(write(tmp_path / "trace", "5shot", shape))
    assert not failures(checks)
    ended = {check.check for check in checks if check.status is Status.PASS}
    assert {"Q1", "Q2", "Q3", "Q4", "Q5", "Q6", "Q7", "Q8"} <= ended


@pytest.mark.parametrize("kind", KINDS)
def test_text_is_distinct_but_for_prefixes(tmp_path: Path, kind: str) -> None:
    trace = write(tmp_path / "trace", kind)
    facts = trace.sequences.to_pylist()
    assert {row["subject"] for row in facts} == {"subject 00", "subject 01"}
    firsts: dict[str, np.ndarray] = {}
    own = []
    for row, rows_TB in zip(facts, rows_by_sequence(trace), strict=True):
        assert row["prefix_id"] == -1  # its rows are stored, whatever they repeat
        end = row["prefix_end"]
        assert 500 <= end <= 900 if kind == "5shot" else end == 0
        assert row["new_from"] == (end if row["subject"] in firsts else 0)
        prefix = firsts.setdefault(row["subject"], rows_TB[:end])
        assert np.array_equal(rows_TB[:end], prefix)
        own.append(rows_TB[end:])
    rows_TB = np.concatenate(own)
    assert len(np.unique(rows_TB, axis=0)) == len(rows_TB)
    answers = [row["correct"] for row in facts]
    assert True in answers
    assert False in answers


def test_decisions_do_not_depend_on_batches(routers: Any) -> None:
    token_id_T, lengths_D = np.arange(90) % 7, np.array([40, 20, 30])
    whole = routers.Router(routers.SHAPES["qwen3"], 3).route(token_id_T, lengths_D, 1)
    router = routers.Router(routers.SHAPES["qwen3"], 3)
    parts = [
        router.route(token_id_T[:40], lengths_D[:1], 1),
        router.route(token_id_T[40:], lengths_D[1:], 1),
    ]
    assert np.array_equal(whole, np.concatenate(parts))
    assert not np.array_equal(
        whole, routers.Router(routers.SHAPES["qwen3"], 4).route(token_id_T, lengths_D, 1)
    )


def test_a_token_keeps_to_few_groups(routers: Any) -> None:
    shape = routers.Shape(0, 2, 32, 6, num_groups=8, groups_per_token=3)
    ids_TK = routers.Router(shape, 0).route(np.arange(2000), np.array([2000]), 0).reshape(-1, 6)
    groups = [len(set(row)) for row in (ids_TK // 4).tolist()]
    assert max(groups) == 3
    assert all(len(set(row)) == 6 for row in ids_TK.tolist())


def test_token_ids_matter_most_in_early_layers(routers: Any) -> None:
    shape, by_text = routers.SHAPES["qwen3"], []
    for token_id_T in (np.zeros(400, int), np.arange(400)):
        ids_TLK = routers.Router(shape, 0).route(token_id_T, np.full(400, 1), 0)
        ids_TLK = ids_TLK.reshape(400, shape.num_layers, shape.top_k)
        by_text.append((ids_TLK[:-1, :, :, None] == ids_TLK[1:, :, None, :]).sum(axis=(0, 2, 3)))
    equal_L, distinct_L = by_text
    assert equal_L[:8].mean() > 1.8 * distinct_L[:8].mean()
    assert 1.02 < equal_L[-8:].mean() / distinct_L[-8:].mean() < 1.4


def test_alias_tables_have_the_weights(routers: Any) -> None:
    weights_LN = np.random.default_rng(0).lognormal(sigma=2.0, size=(3, 40))
    keep_LN, other_LN = routers.alias_tables(weights_LN)
    for weights_N, keep_N, other_N in zip(weights_LN, keep_LN, other_LN, strict=True):
        kept_N = (keep_N + 1.0) / 2**16
        chance_N = kept_N + np.bincount(other_N, 1 - kept_N, minlength=40)
        np.testing.assert_allclose(chance_N / 40, weights_N / weights_N.sum(), atol=2 / 2**16)
