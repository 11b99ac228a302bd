"""Model names: a short list of well-known models, Hub ids, and directories."""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from moe_probe.errors import UsageError

BUNDLED = {"tiny-moe": Path(__file__).parent / "bundled" / "tiny_moe"}
"""Models that come with the package, by name."""

SHORT_NAMES = {
    "deepseek-r1": "deepseek-ai/DeepSeek-R1",
    "deepseek-v2": "deepseek-ai/DeepSeek-V2",
    "deepseek-v2-lite": "deepseek-ai/DeepSeek-V2-Lite",
    "deepseek-v3": "deepseek-ai/DeepSeek-V3",
    "glm-4.5": "zai-org/GLM-4.5",
    "glm-4.5-air": "zai-org/GLM-4.5-Air",
    "gpt-oss-120b": "openai/gpt-oss-120b",
    "gpt-oss-20b": "openai/gpt-oss-20b",
    "mixtral-8x22b": "mistralai/Mixtral-8x22B-v0.1",
    "mixtral-8x7b": "mistralai/Mixtral-8x7B-v0.1",
    "olmoe-1b-7b": "allenai/OLMoE-1B-7B-0924",
    "qwen1.5-moe-a2.7b": "Qwen/Qwen1.5-MoE-A2.7B",
    "qwen2-57b-a14b": "Qwen/Qwen2-57B-A14B",
    "qwen3-235b-a22b": "Qwen/Qwen3-235B-A22B",
    "qwen3-30b-a3b": "Qwen/Qwen3-30B-A3B",
}
"""Hub ids by short name."""

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True, kw_only=True)
class ResolvedModel:
    """The model a name stands for."""

    given: str
    """The name as the user wrote it."""
    identifier: str
    """The full Hub id, or the absolute path of a directory."""
    source: Literal["bundled", "path", "hub"]
    """Where the files come from."""

    @property
    def name(self) -> str:
        """What a trace calls the model: a bundled one by its name, wherever it is installed."""
        return self.given.lower() if self.source == "bundled" else self.identifier


def resolve_model(name: str) -> ResolvedModel:
    """Find what a name stands for: a short name in any case, a Hub id, or a directory.

    A directory needs a path separator or a leading dot in its name, so a short name never means a
    folder that happens to be there. Raises UsageError for an unknown short name (with the nearest
    known ones), for a path that is not a directory and for a directory without config.json.
    """
    known = name.lower()
    if known in BUNDLED:
        return ResolvedModel(given=name, identifier=str(BUNDLED[known]), source="bundled")
    if known in SHORT_NAMES:
        return ResolvedModel(given=name, identifier=SHORT_NAMES[known], source="hub")
    if not _looks_like_path(name):
        near = difflib.get_close_matches(known, [*BUNDLED, *SHORT_NAMES], n=3, cutoff=0.0)
        raise UsageError(
            f"No model is known as {name!r}. Near matches: {', '.join(near)}; "
            "or pass a Hub id (owner/name) or a path (./name)."
        )
    directory = Path(name).expanduser()
    if not directory.is_dir() and _HUB_ID.fullmatch(name) and not name.startswith("."):
        return ResolvedModel(given=name, identifier=name, source="hub")
    if not (directory / "config.json").is_file():
        state = "has no config.json" if directory.is_dir() else "is not a directory"
        raise UsageError(
            f"{name} {state}. Pass a directory of save_pretrained, or a Hub id (owner/name)."
        )
    return ResolvedModel(given=name, identifier=str(directory.resolve()), source="path")


def _looks_like_path(name: str) -> bool:
    return "/" in name or os.sep in name or name.startswith(".")
