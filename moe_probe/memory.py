"""The memory that this process may still take."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

from moe_probe.errors import MoeProbeError

_LEAST = 1 << 30
"""Address space that numpy, scipy and pyarrow reserve, most of which they do not use. Where there
is less, OpenBLAS asks for it again and again without end."""
_LACKS = (
    *("failed to map segment", "Cannot allocate memory"),
    *("can't start new thread", "Failed to launch worker thread"),
)
"""How errors that are no MemoryError say that memory ran out."""


def available_memory() -> int:
    """Return the bytes that the machine, control groups and resource limits leave."""
    return min([_machine_available(), *_cgroup_available(), *_limits_available()])


def refuse_low_limits() -> None:
    """Raise MoeProbeError where a resource limit leaves less than libraries reserve."""
    left = min(_limits_available(), default=_LEAST)
    if left < _LEAST:
        raise MoeProbeError(
            f"A limit on this process (ulimit -v or -d) leaves {left >> 20} MiB of address space; "
            f"numpy, scipy and pyarrow need {_LEAST >> 20} MiB, most of which they only reserve. "
            "Raise the limit."
        )


def lack_of_memory(error: BaseException) -> str | None:
    """Return what an error says of memory that ran out, without a full stop; None if nothing."""
    lines = [line.strip().rstrip(".") for line in str(error).splitlines()]
    if isinstance(error, MemoryError):
        return "\n".join(lines).strip()
    return next((line for line in lines if any(lack in line for lack in _LACKS)), None)


def gib(num_bytes: float) -> str:
    """Write a size in GiB, or MiB where it is small."""
    small = num_bytes < 2**27
    return f"{num_bytes / 2**20:.1f} MiB" if small else f"{num_bytes / 2**30:.1f} GiB"


def _machine_available() -> int:
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _limits_available(statm: Path = Path("/proc/self/statm")) -> Iterator[int]:
    """Yield what each resource limit, such as that of `ulimit -v`, leaves."""
    words = statm.read_text().split() if statm.is_file() else ["0"] * 7
    used = {resource.RLIMIT_AS: words[0], resource.RLIMIT_DATA: words[5]}
    for name, pages in used.items():
        soft, _ = resource.getrlimit(name)
        if soft != resource.RLIM_INFINITY:
            yield max(0, soft - int(pages) * os.sysconf("SC_PAGE_SIZE"))


def _cgroup_available(
    root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")
) -> Iterator[int]:
    """Yield what each control group around this process still allows, versions 2 and 1."""
    lines = membership.read_text().splitlines() if membership.is_file() else []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top, limit, usage = root, "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            top, limit, usage = root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        group = top / path.lstrip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(top):
                yield from _group_available(folder, limit, usage)


def _group_available(folder: Path, limit_file: str, usage_file: str) -> Iterator[int]:
    try:
        limit = int((folder / limit_file).read_text())
        usage = int((folder / usage_file).read_text())
        statistics = dict(
            line.split() for line in (folder / "memory.stat").read_text().splitlines()
        )
    except (OSError, ValueError):
        # No such group, or its limit is "max".
        return
    # Cached file pages count as used, and the kernel gives them up on demand.
    yield max(0, limit - usage + int(statistics.get("inactive_file", 0)))
