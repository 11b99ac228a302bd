"""What a command that analyses does to its own process."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

# Threads allocate, and glibc writes down how many arenas it has.
_CODE = """
import ctypes, sys, threading
from moe_probe.cli.process import prepare_analysis
if sys.argv[2] == "prepared":
    prepare_analysis()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.fopen.restype = ctypes.c_void_p, ctypes.c_void_p
threads = [threading.Thread(target=lambda: [libc.malloc(10_000) for _ in range(9)]) for _ in "1234"]
for thread in threads: thread.start()
for thread in threads: thread.join()
file = ctypes.c_void_p(libc.fopen(sys.argv[1].encode(), b"w"))
libc.malloc_info(0, file), libc.fclose(file)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="an option of glibc's malloc")
@pytest.mark.parametrize(
    ("how", "environment", "arenas"),
    [
        ("prepared", {}, 1),
        ("prepared", {"MALLOC_ARENA_MAX": "2"}, 2),
        ("as it is", {"MALLOC_ARENA_MAX": "2"}, 2),
    ],
)
def test_threads_share_freed_memory_unless_a_user_says_otherwise(
    tmp_path: Path, how: str, environment: dict[str, str], arenas: int
) -> None:
    path = tmp_path / "malloc.xml"
    without = {name: value for name, value in os.environ.items() if "MALLOC_" not in name}
    subprocess.run(
        [sys.executable, "-c", _CODE, str(path), how], env={**without, **environment}, check=True
    )
    assert len(re.findall("<heap nr=", path.read_text())) == arenas
