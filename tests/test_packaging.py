"""The wheel: complete, and working outside the checkout."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from moe_probe import __version__

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SHIPPED = ["pyproject.toml", "README.md", "LICENSE", "moe_probe", "hooks", "analysis"]


def folders_with_code() -> set[str]:
    """Return every package of the checkout under its installed name."""
    found = set()
    for top, installed in (
        ("moe_probe", "moe_probe"),
        ("hooks", "moe_probe.hooks"),
        ("analysis", "moe_probe.analysis"),
    ):
        for file in (ROOT / top).rglob("*.py"):
            inner = file.parent.relative_to(ROOT / top).parts
            found.add(".".join([installed, *inner]))
    return found


def test_every_folder_with_code_is_named_in_pyproject() -> None:
    assert folders_with_code() == set(PYPROJECT["tool"]["setuptools"]["packages"])


def test_every_named_package_has_an_init() -> None:
    mapping = PYPROJECT["tool"]["setuptools"]["package-dir"]
    for package in PYPROJECT["tool"]["setuptools"]["packages"]:
        installed = max((m for m in mapping if f"{package}.".startswith(f"{m}.")), key=len)
        rest = package.removeprefix(installed).lstrip(".").split(".")
        assert (ROOT / mapping[installed] / Path(*filter(None, rest)) / "__init__.py").is_file()


def test_links_lead_to_the_mapped_folders() -> None:
    for name in ("hooks", "analysis"):
        assert os.readlink(ROOT / "moe_probe" / name) == f"../{name}"


def test_version_is_the_packages() -> None:
    assert PYPROJECT["project"]["version"] == __version__


@dataclass(frozen=True)
class Installed:
    """A wheel, and an environment outside the checkout where it is installed."""

    wheel: Path
    directory: Path

    def run(self, *command: str) -> str:
        """Run a command of the environment from an empty folder; return its output."""
        program = self.directory / "bin" / command[0]
        empty = self.directory / "empty"
        empty.mkdir(exist_ok=True)
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        result = subprocess.run(
            [program, *command[1:]], cwd=empty, env=environment, capture_output=True, text=True
        )
        assert result.returncode == 0, result.stderr
        return result.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    tmp = tmp_path_factory.mktemp("wheel")
    tree = tmp / "tree"
    tree.mkdir()
    # A copy, for a build leaves folders behind.
    for name in SHIPPED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tree / name, symlinks=True)
        else:
            shutil.copy(ROOT / name, tree / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = ["wheel", "--no-deps", "--no-index", "--no-build-isolation", "-w", str(tmp), str(tree)]
    subprocess.run([*pip, *build], check=True)
    (wheel,) = tmp.glob("*.whl")
    venv.create(tmp / "venv", symlinks=True)
    python = str(tmp / "venv" / "bin" / "python")
    subprocess.run(
        [*pip, "--python", python, "install", "--no-deps", "--no-index", str(wheel)], check=True
    )
    # The dependencies come from here; the editable install does not, for a folder added by a
    # .pth file has its own .pth files left alone.
    site = next((tmp / "venv" / "lib").glob("python*/site-packages"))
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return Installed(wheel=wheel, directory=tmp / "venv")


def test_wheel_has_one_top_level_name(installed: Installed) -> None:
    with zipfile.ZipFile(installed.wheel) as archive:
        tops = {name.split("/")[0] for name in archive.namelist()}
    assert tops == {"moe_probe", f"moe_probe-{__version__}.dist-info"}


def test_wheel_has_all_code_and_data(installed: Installed) -> None:
    with zipfile.ZipFile(installed.wheel) as archive:
        inside = set(archive.namelist())
    places = {
        "moe_probe": ROOT / "moe_probe",
        "moe_probe/hooks": ROOT / "hooks",
        "moe_probe/analysis": ROOT / "analysis",
    }
    expected = {
        f"{prefix}/{file.relative_to(folder).as_posix()}"
        for prefix, folder in places.items()
        for file in folder.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert expected - inside == set()
    assert "moe_probe/py.typed" in inside
    assert "moe_probe/bundled/tiny_moe/config.json" in inside
    samples = [name for name in inside if re.search(r"mmlu_sample/(dev|test)/\w+\.csv$", name)]
    assert len(samples) == 2 * 57


def test_installed_command_works(installed: Installed) -> None:
    assert installed.run("moe-probe", "--version") == f"moe-probe {__version__}\n"
    assert "record" in installed.run("moe-probe", "--help")
    assert "deepseek-ai/DeepSeek-V3" in installed.run("moe-probe", "ls", "models")
    assert installed.run("python", "-m", "moe_probe", "--version") == f"moe-probe {__version__}\n"


def test_installed_packages_import_from_the_environment(installed: Installed) -> None:
    names = [name for name in sorted(folders_with_code()) if name.split(".")[1:2] != ["hooks"]]
    code = (
        "import importlib\n"
        f"for name in {names}: print(importlib.import_module(name).__file__)\n"
        "from moe_probe.models import resolve_model\n"
        "print(resolve_model('tiny-moe').identifier)\n"
    )
    lines = installed.run("python", "-c", code).splitlines()
    assert len(lines) == len(names) + 1
    assert all(Path(line).is_relative_to(installed.directory) for line in lines)
