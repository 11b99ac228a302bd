from __future__ import annotations

import re
from pathlib import Path

import pytest

from moe_probe.errors import UsageError
from moe_probe.models import BUNDLED, SHORT_NAMES, ResolvedModel, resolve_model


@pytest.fixture
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make_model(directory: Path) -> None:
    directory.mkdir(parents=True)
    (directory / "config.json").write_text("{}")


@pytest.mark.parametrize("name", ["deepseek-v3", "DeepSeek-V3"])
def test_short_name_in_any_case(name: str) -> None:
    expected = ResolvedModel(given=name, identifier="deepseek-ai/DeepSeek-V3", source="hub")
    assert resolve_model(name) == expected


def test_bundled_model_is_a_folder_of_the_package() -> None:
    import moe_probe

    resolved = resolve_model("tiny-moe")
    package = Path(moe_probe.__file__).parent
    assert resolved.source == "bundled"
    assert Path(resolved.identifier) == package / "bundled" / "tiny_moe"


def test_hub_id_is_taken_as_written(in_tmp: Path) -> None:
    resolved = resolve_model("Qwen/Qwen3-30B-A3B")
    assert (resolved.identifier, resolved.source) == ("Qwen/Qwen3-30B-A3B", "hub")


def test_short_name_is_never_a_folder(in_tmp: Path) -> None:
    make_model(in_tmp / "deepseek-v3")
    assert resolve_model("deepseek-v3").source == "hub"


@pytest.mark.parametrize("name", ["./deepseek-v3", "runs/deepseek-v3", "./runs/../deepseek-v3"])
def test_separator_makes_it_a_folder(in_tmp: Path, name: str) -> None:
    make_model(in_tmp / "deepseek-v3")
    make_model(in_tmp / "runs" / "deepseek-v3")
    resolved = resolve_model(name)
    assert (resolved.identifier, resolved.source) == (str((in_tmp / name).resolve()), "path")


def test_folder_wins_over_a_hub_id_of_the_same_form(in_tmp: Path) -> None:
    make_model(in_tmp / "owner" / "name")
    assert resolve_model("owner/name").source == "path"


def test_unknown_short_name_shows_three_near_matches() -> None:
    with pytest.raises(UsageError) as caught:
        resolve_model("deepseek-v4")
    message = str(caught.value)
    near = re.search(r"Near matches: (.*);", message)
    assert near is not None
    assert set(near[1].split(", ")) == {"deepseek-v3", "deepseek-v2", "deepseek-r1"}
    assert message.endswith("or pass a Hub id (owner/name) or a path (./name).")


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("./absent", "./absent is not a directory"),
        ("a/b/c", "a/b/c is not a directory"),
        (".", ". has no config.json"),
    ],
)
def test_path_that_is_no_model(in_tmp: Path, name: str, complaint: str) -> None:
    with pytest.raises(UsageError, match="^" + re.escape(complaint)):
        resolve_model(name)


def test_list_is_lower_case_and_fits_a_screen() -> None:
    names = [*BUNDLED, *SHORT_NAMES]
    assert all(name == name.lower() and "/" not in name for name in names)
    assert len(names) <= 24
    assert all(identifier.count("/") == 1 for identifier in SHORT_NAMES.values())
