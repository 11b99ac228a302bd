"""Checkpoints and references shared by all engine tests; vLLM keeps its caches in here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.vllm.reference import Reference
from tests.vllm.zoo import ZOO


@pytest.fixture(scope="session", autouse=True)
def own_caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let no test read what another version left, nor leave anything behind."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CACHE_ROOT", str(tmp_path_factory.mktemp("vllm")))
        patch.setenv("VLLM_CONFIG_ROOT", str(tmp_path_factory.mktemp("vllm-config")))
        yield


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the folder of a model of the zoo, made when first asked for."""
    parent = tmp_path_factory.mktemp("checkpoints")
    return cache(lambda name: ZOO[name].folder(parent))


@pytest.fixture(scope="session")
def reference(checkpoint: Callable[[str], Path]) -> Callable[[str], Reference]:
    """Return a model of the zoo as transformers runs it."""
    return cache(lambda name: Reference(checkpoint(name)))


@pytest.fixture(scope="session")
def qwen(checkpoint: Callable[[str], Path]) -> Path:
    return checkpoint("qwen3_moe")


@pytest.fixture(scope="session")
def qwen_reference(reference: Callable[[str], Reference]) -> Reference:
    return reference("qwen3_moe")
