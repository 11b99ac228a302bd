"""What a command prints where standard output is full, or has no encoding for it."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from moe_probe import output
from moe_probe.trace import LayerSpec, TraceWriter

FULL = Path("/dev/full")
TEXT = "\u00fc <\udcff>"
"""A letter that ASCII lacks, and a byte of a path that is no UTF-8."""


def printed(monkeypatch: pytest.MonkeyPatch, encoding: str) -> str:
    """Print a line and a document, and return both."""
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding))
    output.result(TEXT)
    output.document({"file": TEXT})
    return raw.getvalue().decode(encoding)


def test_what_cannot_be_encoded_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    for encoding, line in (("ascii", r"\xfc <\udcff>"), ("utf-8", "\u00fc <\\udcff>")):
        first, _, document = printed(monkeypatch, encoding).partition("\n")
        assert first == line
        assert json.loads(document) == {"file": TEXT}


@pytest.mark.skipif(not FULL.exists(), reason="no device that is always full")
@pytest.mark.parametrize("arguments", ["env", "env --json", "ls models"])
def test_full_standard_output_is_one_sentence(arguments: str) -> None:
    with FULL.open("w") as full:
        command = [sys.executable, "-m", "moe_probe", *arguments.split()]
        run = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert run.returncode == 1
    assert run.stderr == (
        "Error: Cannot write to standard output: No space left on device. "
        "Free some space, or have it written elsewhere.\n"
    )


def test_reader_that_goes_away_changes_no_exit_code(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    with TraceWriter(path, layers=[LayerSpec(layer=0, num_experts=8, top_k=2)]) as writer:
        writer.add([np.zeros((5, 2), np.int64)])
    for arguments, code in (("ls models", 0), (f"check {path}", 1)):
        # It is not there any more when the first line comes.
        command = f"({sys.executable} -m moe_probe {arguments}; echo $? >&2) | :"
        run = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
        assert run.stderr.splitlines()[-1] == str(code)
        assert "Traceback" not in run.stderr
