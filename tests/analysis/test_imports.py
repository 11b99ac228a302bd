"""What importing costs and what it must not bring in."""

from __future__ import annotations

import subprocess
import sys

import pytest

from moe_probe import analysis


def modules_after(code: str) -> set[str]:
    code = f"import sys; {code}; print(*(name.split('.')[0] for name in sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    return set(found.stdout.split())


def test_public_names_load() -> None:
    for name in analysis.__all__:
        assert getattr(analysis, name).__name__ == name
    assert sorted(analysis._MODULES) == analysis.__all__
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = analysis.no_such_name


def test_analysis_imports_nothing_by_itself() -> None:
    assert not modules_after("import moe_probe.analysis") & {"numpy", "pandas", "pyarrow"}


def test_analysis_never_imports_torch_or_hooks() -> None:
    code = "from moe_probe.analysis import *; import moe_probe.analysis.report.terminal"
    assert not modules_after(code) & {"torch", "transformers", "lm_eval", "matplotlib"}
    code = f"import sys; {code}; print('moe_probe.hooks' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert found.stdout == "False\n"


def test_exports_do_without_pandas() -> None:
    code = "import moe_probe.analysis.exports.rows, moe_probe.analysis.exports.counts"
    assert not modules_after(code) & {"pandas", "scipy", "matplotlib"}
