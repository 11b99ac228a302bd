"""What every test runs under: a terminal of 80 columns, no network, no cache outside."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest

# Before anything imports huggingface_hub or datasets, which read these once.
_CACHE = tempfile.mkdtemp(prefix="moe-probe-tests-")
os.environ.update(
    COLUMNS="80",
    TERM="dumb",
    HF_HUB_OFFLINE="1",
    HF_DATASETS_CACHE=_CACHE,
    TOKENIZERS_PARALLELISM="false",
)


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(_CACHE, ignore_errors=True)


@pytest.fixture(scope="session")
def byte_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen3-MoE with a byte tokenizer."""
    from tests.toy import save_byte_model

    return save_byte_model(tmp_path_factory.mktemp("byte-model"))


@pytest.fixture(scope="session")
def toy_tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An include path of small tasks of every request type."""
    from tests.toy import save_toy_tasks

    return save_toy_tasks(tmp_path_factory.mktemp("toy-tasks"))
