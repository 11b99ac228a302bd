"""What every test runs under: a terminal of 80 columns, no network, no cache outside."""

from __future__ import annotations

import os
import shutil
import tempfile

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
