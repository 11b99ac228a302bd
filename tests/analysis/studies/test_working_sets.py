"""Distinct experts of windows, against sets of experts of every window."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from moe_probe.analysis import working_sets
from moe_probe.errors import TraceError
from moe_probe.trace import LayerSpec, Trace, TraceWriter, open_trace
from tests.analysis.conftest import Run, make_run
from tests.analysis.naive import NaiveLayer
from tests.analysis.streams import LAYERS, Token, make_stream

WINDOWS = (1, 2, 5, 40)


def runs(tokens: list[Token]) -> Iterator[list[Token]]:
    """Consecutive tokens of one document, as recorded."""
    run: list[Token] = []
    for token in tokens:
        facts = (token.sequence, token.document, token.position)
        if run and facts != (run[-1].sequence, run[-1].document, run[-1].position + 1):
            yield run
            run = []
        run.append(token)
    yield run


@pytest.mark.parametrize(
    ("seed", "documents", "prefix", "rule"),
    [(0, 14, 3, "unique"), (1, 9, 3, "question"), (2, 1, 0, "unique")],
)
def test_against_every_window(
    tmp_path: Path, seed: int, documents: int, prefix: int, rule: str
) -> None:
    trace, tokens = make_stream(tmp_path / "trace", seed, documents=documents, prefix=prefix)
    if rule == "question":
        tokens = [token for token in tokens if token.document[0]]
    found = working_sets(trace, rule=rule, windows=WINDOWS, threads=2)
    subjects = ["", *sorted({token.subject for token in tokens})]
    assert len(found) == len(LAYERS) * len(WINDOWS) * len(subjects)
    rows = iter(found.to_dict("records"))
    for spec in LAYERS:
        for window in WINDOWS:
            for subject in subjects:
                chosen = [t for t in tokens if subject in ("", t.subject)]
                sizes = [
                    len({e for t in run[end - window : end] for e in t.experts[spec.layer]})
                    for run in runs(chosen)
                    for end in range(window, len(run) + 1)
                ]
                layer, row = NaiveLayer.of(chosen, spec), next(rows)
                assert (row["layer"], row["window"], row["subject"]) == (
                    spec.layer,
                    window,
                    subject,
                )
                assert row["windows"] == len(sizes)
                mean = np.mean(sizes) if sizes else math.nan
                assert row["experts"] == pytest.approx(mean, nan_ok=True)
                p_N = [layer.count(expert) / len(chosen) for expert in layer.experts]
                own = sum(1 - (1 - p) ** window for p in p_N)
                assert row["experts_null_own"] == pytest.approx(own)
                fair = len(p_N) * (1 - (1 - sum(p_N) / len(p_N)) ** window)
                assert row["experts_null"] == pytest.approx(fair)
    assert len(set(found["windows"])) > 2
    assert found["experts"].max() > 3


def test_windows_count_as_often_as_their_last_token(tmp_path: Path) -> None:
    run = make_run(tmp_path / "trace", 1)
    found = working_sets(run.trace, rule="raw", windows=(1,))
    _, tokens = run.naive("raw")
    of_all = found[found["subject"] == ""].set_index("layer")
    for spec in run.layers:
        assert of_all["windows"][spec.layer] == tokens.total() > 100
        assert of_all["experts"][spec.layer] == spec.top_k


def test_fair_routing_is_the_null(tmp_path: Path) -> None:
    spec = LayerSpec(layer=0, num_experts=32, top_k=4)
    ids_TK = np.argsort(np.random.default_rng(3).random((4000, 32)), axis=1)[:, :4]
    with TraceWriter(tmp_path / "trace", layers=[spec]) as writer:
        writer.add([ids_TK])
    found = working_sets(tmp_path / "trace")
    assert found["experts"].tolist() == pytest.approx(found["experts_null"].tolist(), rel=0.02)
    assert found["experts"].tolist() == pytest.approx(found["experts_null_own"].tolist(), rel=0.02)
    own_repeats = np.repeat(ids_TK[::8], 8, axis=0)
    with TraceWriter(tmp_path / "repeats", layers=[spec]) as writer:
        writer.add([own_repeats])
    alike = working_sets(tmp_path / "repeats", windows=[8])
    assert (alike["experts"] < 0.6 * alike["experts_null_own"]).all()


def test_what_cannot_be_told(counts_run: Run, tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="no per-token rows, which this needs"):
        working_sets(counts_run.trace)
    with pytest.raises(ValueError, match="windows of 0 tokens"):
        working_sets(counts_run.trace, windows=[0])
    with TraceWriter(tmp_path / "empty", layers=[LayerSpec(layer=0, num_experts=4, top_k=1)]):
        pass
    nothing: Trace = open_trace(tmp_path / "empty")
    found = working_sets(nothing)
    assert found["windows"].sum() == 0
    assert found["experts"].isna().all()
