"""Committees of traces, with and without gate weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from moe_probe.analysis import committees
from moe_probe.analysis.metrics.committee import committee
from moe_probe.errors import TraceError
from moe_probe.trace import LayerSpec, TraceWriter
from tests.analysis.conftest import Run
from tests.analysis.naive import NaiveLayer
from tests.analysis.streams import LAYERS, make_stream


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_selections_against_single_tokens(tmp_path: Path, share: float) -> None:
    trace, tokens = make_stream(tmp_path / "trace", 0)
    rows = committees(trace, share=share, threads=2).to_dict("records")
    for spec, row in zip(LAYERS, rows, strict=True):
        layer = NaiveLayer.of(tokens, spec)
        per_token = [
            [layer.count(e, layer.of_subject(s)) / len(layer.of_subject(s)) for e in layer.experts]
            for s in layer.subjects
        ]
        expected = committee(np.array(per_token), spec.top_k, share)
        assert (row["layer"], row["contribution"]) == (spec.layer, "selections")
        assert row["experts"] == " ".join(map(str, expected.members_M))
        assert (row["candidates"], row["members"]) == (
            expected.candidates,
            len(expected.members_M),
        )
        if row["members"]:
            assert row["coverage"] == pytest.approx(expected.coverage)
            assert row["coverage_null"] == row["members"] / spec.num_experts


def test_weights_count_where_there_are_any(tmp_path: Path) -> None:
    """All tokens select experts 0 and 1, and give nearly all weight to 1."""
    spec = LayerSpec(layer=0, num_experts=8, top_k=2)
    with TraceWriter(tmp_path / "trace", layers=[spec], capture="weights") as writer:
        for subject in ("a", "b", "c"):
            ids_TK, weights_TK = np.tile([0, 1], (9, 1)), np.tile([0.25, 0.75], (9, 1))
            writer.add([ids_TK], topk_weights=[weights_TK], subject=subject)
    (row,) = committees(tmp_path / "trace").to_dict("records")
    assert (row["contribution"], row["experts"], row["candidates"]) == ("weights", "1", 2)
    assert row["coverage"] == pytest.approx(0.75)
    assert row["influence"] == pytest.approx(0.75 / (0.25 / 7))


def test_what_cannot_be_told(counts_run: Run) -> None:
    with pytest.raises(TraceError, match="no per-token rows, which this needs"):
        committees(counts_run.trace)
    with pytest.raises(ValueError, match=r"a share of 1\.5 of the subjects"):
        committees(counts_run.trace, share=1.5)
