"""How much memory a process may take, by control groups and resource limits."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from moe_probe import memory


@pytest.mark.parametrize(
    ("membership", "folder", "limit", "usage"),
    [
        ("0::/job/step\n", "job", "memory.max", "memory.current"),
        (
            "4:cpu:/\n3:memory:/job/step\n",
            "memory/job",
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
        ),
    ],
)
def test_limit_of_an_outer_control_group_counts(
    tmp_path: Path, membership: str, folder: str, limit: str, usage: str
) -> None:
    (tmp_path / "membership").write_text(membership)
    group = tmp_path / folder
    (group / "step").mkdir(parents=True)
    (group / limit).write_text("1000\n")
    (group / usage).write_text("700\n")
    (group / "memory.stat").write_text("anon 500\ninactive_file 200\n")
    assert list(memory._cgroup_available(tmp_path, tmp_path / "membership")) == [500]


def test_unlimited_control_group_does_not(tmp_path: Path) -> None:
    (tmp_path / "membership").write_text("0::/\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert list(memory._cgroup_available(tmp_path, tmp_path / "membership")) == []


def test_available_memory_is_below_the_machines() -> None:
    total = next(
        int(line.split()[1]) * 1024
        for line in Path("/proc/meminfo").read_text().splitlines()
        if line.startswith("MemTotal:")
    )
    assert 0 < memory.available_memory() < total


@pytest.mark.parametrize("name", ["RLIMIT_AS", "RLIMIT_DATA"])
def test_a_resource_limit_leaves_what_is_not_used(name: str) -> None:
    code = (
        "import resource; from moe_probe.memory import available_memory\n"
        f"resource.setrlimit(resource.{name}, (1 << 30, resource.RLIM_INFINITY))\n"
        "left = available_memory()\n"
        "bytearray(left - (16 << 20))\n"
        "try: bytearray(left + (16 << 20))\n"
        "except MemoryError: print(left < 1 << 30)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert found.stdout == "True\n"
