"""A trace with a size limit is sound, and its rules cover the rows that were kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from moe_probe.analysis.quality import Status, check_trace
from moe_probe.analysis.reading.rules import Rule
from moe_probe.analysis.scan import count
from moe_probe.trace import LayerSpec, Trace, TraceWriter, open_trace

SPEC = LayerSpec(layer=0, num_experts=16, top_k=2)


def limited(path: Path) -> tuple[Trace, np.ndarray]:
    """A trace of three sequences whose first alone has rows; the ids that it keeps."""
    chance = np.random.default_rng(0)
    ids = [np.argsort(chance.random((20, 16)), axis=1)[:, :2] for _ in range(3)]
    with TraceWriter(path, layers=[SPEC], max_bytes=0) as writer:
        for ids_TK in ids:
            writer.add([ids_TK])
            writer.flush()
    return open_trace(path), ids[0]


def test_the_checks_find_no_fault(tmp_path: Path) -> None:
    checks = {check.check: check for check in check_trace(limited(tmp_path / "t")[0])}
    assert (checks["Q5"].status, checks["Q6"].status) == (Status.PASS, Status.PASS)
    assert checks["Q5"].expected.endswith("tables >= rows, some left out")


def test_the_rules_cover_what_was_kept(tmp_path: Path) -> None:
    trace, ids_TK = limited(tmp_path / "t")
    for rule in (Rule.RAW, Rule.UNIQUE):
        counts_N = count(trace, rule).layer(0).counts_N
        assert counts_N.tolist() == np.bincount(ids_TK.ravel(), minlength=16).tolist()


def test_lost_rows_are_still_found(tmp_path: Path) -> None:
    trace, _ = limited(tmp_path / "t")
    (part,) = (tmp_path / "t" / "routing").glob("*.parquet")
    pq.write_table(pq.read_table(part).slice(0, 19), part)
    checks = {check.check: check for check in check_trace(open_trace(trace.path))}
    assert checks["Q6"].value == "2 of 3 sequences; sequence 0: 19 of 20 rows"


def test_tables_with_less_than_the_rows_are_found(tmp_path: Path) -> None:
    trace, _ = limited(tmp_path / "t")
    for part in (tmp_path / "t" / "counts").glob("*.parquet"):
        pq.write_table(pq.read_table(part).slice(0, 0), part)
    checks = {check.check: check for check in check_trace(open_trace(trace.path))}
    assert "the counts tables differ from the rows" in checks["Q5"].value
