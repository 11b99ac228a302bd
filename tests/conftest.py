"""What every test runs under: a terminal of 80 columns, no network, no cache outside."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put compiled loops last: with numba imported, vLLM's engine cannot start in this process,
    since it compares the attributes of every module."""
    items.sort(key=lambda item: item.get_closest_marker("compiled") is not None)


@pytest.fixture(autouse=True)
def compiler_comes_last(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that loads the compiler, or whose file does, without the mark; vLLM may."""
    yield
    is_marked = request.node.get_closest_marker("compiled") is not None
    # Workers run no engine of vLLM.
    is_worker = "PYTEST_XDIST_WORKER" in os.environ
    if not (is_marked or is_worker) and "numba" in sys.modules and "vllm" not in sys.modules:
        pytest.fail("numba is imported: mark what needs it as compiled, and import it inside")


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


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `moe-probe demo` writes, of one question for each subject: trace and tables."""
    pytest.importorskip("lm_eval")
    folder = tmp_path_factory.mktemp("demo")
    model = ["--model", "tiny-moe", "--task", "mmlu_sample", "--limit", "1", "--device", "cpu"]
    trace, report = str(folder / "trace"), str(folder / "report")
    for command in (
        ["record", *model, "-o", trace],
        ["report", trace, "-o", report, "--tables-only"],
    ):
        subprocess.run([sys.executable, "-m", "moe_probe", *command], check=True)
    return folder
