"""A command for which memory does not suffice ends with one sentence."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moe_probe import memory
from moe_probe.analysis import gathering
from moe_probe.analysis.accumulators.structure import refuse_large
from moe_probe.errors import MoeProbeError
from moe_probe.trace import LayerSpec, TraceWriter


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """As many experts as a trace can have."""
    layers = [LayerSpec(layer=0, num_experts=65_534, top_k=2)]
    with TraceWriter(tmp_path / "t", layers=layers, segment_tokens=100) as writer:
        writer.add([np.array([[0, 65_533]] * 9)], subject="a", doc_id=0)
    return tmp_path / "t"


def test_tables_of_all_layers_and_copies_of_the_largest_must_fit() -> None:
    specs = {n: LayerSpec(layer=n, num_experts=e, top_k=1) for n, e in ((7, 5), (0, 10), (3, 20))}
    pairs, flows, copies = 10 * 10 + 20 * 20 + 5 * 5, 10 * 20 + 20 * 5, 6 * 20 * 20
    need = 8 * (pairs + flows + copies)
    refuse_large(specs, need)
    refuse_large({}, 0)
    with pytest.raises(MoeProbeError, match=r"of 20 experts in 3 MoE layers need 0\.0 MiB with"):
        refuse_large(specs, need - 1)


def test_a_report_of_too_many_experts_is_refused_before_the_scan(
    probe: Any, trace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gathering, "available_memory", lambda: 7 << 30)
    monkeypatch.delattr(gathering, "Source")
    result = probe("report", trace)
    said = " ".join(result.err.split())
    assert (result.code, result.out) == (1, "")
    assert "of 65534 experts in 1 MoE layer need 224.0 GiB with what is computed of them" in said
    assert "this process may take 7.0 GiB. Use a machine with more memory, or count alone:" in said
    assert not (trace / "report").exists()
    # What it says can be done.
    counts = trace.parent / "counts.parquet"
    assert probe("export", trace, "--format", "counts", "-o", counts).code == 0
    assert pq.read_table(counts)["expert"].to_pylist() == [0, 65_533]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "Memory ran out. Use a machine"),
        (MemoryError("Unable to allocate 3 GiB."), "ran out: Unable to allocate 3 GiB. Use"),
        (pa.ArrowMemoryError("malloc of 9 failed"), "ran out: malloc of 9 failed. Use"),
        (
            ImportError("\nIMPORTANT:\n/a.so: failed to map segment from shared object\n"),
            "/a.so: f",
        ),
        (pa.ArrowException("Failed to launch worker thread"), "ran out: Failed to launch"),
        (OSError(12, "Cannot allocate memory"), "Cannot allocate memory. Use"),
        (RuntimeError("can't start new thread"), "ran out: can't start new thread. Use"),
    ],
)
def test_memory_that_runs_out_is_one_sentence(
    probe: Any, trace: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    # Reading a file takes most memory, and what is wrong then is not the file.
    monkeypatch.setattr(pq.ParquetFile, "read", fail)
    result = probe("check", trace)
    assert (result.code, result.out) == (1, "")
    assert said in " ".join(result.err.split())
    assert "Traceback" not in result.err


@pytest.mark.parametrize("limit", ["RLIMIT_AS", "RLIMIT_DATA"])
def test_limits_below_what_libraries_reserve_are_refused(trace: Path, limit: str) -> None:
    """OpenBLAS would ask for memory again and again, for ever."""
    code = (
        "import resource, sys; from moe_probe.cli import main\n"
        f"resource.setrlimit(resource.{limit}, (300_000 << 10, resource.RLIM_INFINITY))\n"
        f"sys.argv = ['moe-probe', 'report', {str(trace)!r}]; main()"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20)
    assert (run.returncode, run.stdout) == (1, "")
    said = re.fullmatch(
        r"Error: A limit on this process \(ulimit -v or -d\) leaves (\d+) MiB of address "
        r"space; numpy, scipy and pyarrow need 1024 MiB, most of which they only reserve\. "
        r"Raise the limit\.\n",
        run.stderr,
    )
    assert said is not None
    assert 200 <= int(said[1]) < 300_000 >> 10


def test_what_loads_nothing_of_them_is_not(probe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_limits_available", lambda: iter([1 << 28]))
    assert probe("env", "--json").code == 0
    assert probe("ls", "models").code == 1
    monkeypatch.setattr(memory, "_limits_available", lambda: iter([1 << 30]))
    assert probe("ls", "models").code == 0


def test_other_errors_keep_their_traceback(
    probe: Any, trace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(pq.ParquetFile, "read", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        probe("check", trace)
