"""`moe-probe record` as a user meets it: refusals, dry run, baseline, interruption."""

from __future__ import annotations

import errno
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from moe_probe.trace import open_trace
from tests.toy import SHAPE, save_byte_model


@pytest.fixture
def refused(probe: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a command that must fail before any forward pass, with one sentence."""

    def run(*arguments: object) -> tuple[int, str]:
        def forward(*_: Any, **__: Any) -> None:
            raise AssertionError("a model was run")

        with monkeypatch.context() as patched:
            patched.setattr(torch.nn.Module, "__call__", forward)
            code, out, err = probe(*arguments)
        assert out == ""
        errors = [line for line in err.splitlines() if line.startswith("Error: ")]
        assert len(errors) == 1
        assert "Traceback" not in err
        return code, errors[0]

    return run


def save_config_only(folder: Path, config: transformers.PreTrainedConfig) -> Path:
    config.save_pretrained(folder)
    return folder


def test_unknown_model_names_near_matches(refused: Any, tmp_path: Path) -> None:
    code, error = refused("record", "-m", "deepseekv3", "-t", "mmlu", "-o", tmp_path / "t")
    assert code == 2
    assert "deepseek-v3" in error
    assert not (tmp_path / "t").exists()


def test_dense_model_is_offered_a_baseline(refused: Any, tmp_path: Path, toy_tasks: Path) -> None:
    shape = {k: v for k, v in SHAPE.items() if "expert" not in k and not k.startswith("m")}
    dense = save_config_only(tmp_path / "dense", transformers.LlamaConfig(**shape))
    code, error = refused(
        "record", "-m", dense, "-t", "toy_beta", "--include-path", toy_tasks, "-o", tmp_path / "t"
    )
    assert code == 1
    assert "llama is a dense model" in error
    assert "--baseline" in error


def test_model_that_cannot_fit_shows_the_arithmetic(
    refused: Any, tmp_path: Path, toy_tasks: Path
) -> None:
    giant = save_config_only(
        tmp_path / "giant", transformers.MixtralConfig(num_hidden_layers=400, hidden_size=8192)
    )
    code, error = refused(
        "record", "-m", giant, "-t", "toy_beta", "--include-path", toy_tasks, "-o", tmp_path / "t"
    )
    assert code == 1
    assert "parameters x 4 bytes" in error
    assert "GiB free" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-t", "toy_bata"], "No task is called 'toy_bata'. Near matches: toy_beta"),
        (["-t", "toy_beta", "--capture", "everything"], "Use counts, ids, weights"),
        (["-t", "toy_beta", "--sample", "2"], "not of the form 1/N"),
        (["-t", "toy_beta", "--sample", "1/\u00b2"], "not of the form 1/N"),
        (["-t", "toy_beta", "--sample", f"1/{'9' * 5000}"], "not of the form 1/N"),
        *(
            (["-t", "toy_beta", "--limit", limit], f"--limit {float(limit)} is neither a whole")
            for limit in ("nan", "inf", "-inf", "-1", "0", "1.5", "1e30")
        ),
        *(
            (["-t", "toy_beta", "--batch-size", size], "is neither a number from 1 on nor auto")
            for size in ("0", "-1", "\u00b2", "\u0663", "many", "auto:0", "9" * 5000)
        ),
        (["-t", "toy_beta", "--backend", "vllm", "--batch-size", "auto:2"], "from 1 on nor auto"),
        (["-t", "toy_beta", "--num-fewshot", "-1"], "--num-fewshot"),
        (["-t", "mmlu_sample", "--num-fewshot", "6"], "6 is more than the 5 examples that mmlu_"),
        (["-t", "mmlu_sample", "--num-fewshot", "9" * 20, "--dry-run"], "more than the 5 examples"),
        (["-t", "toy_beta", "--dtype", "float33"], "No dtype is called 'float33'"),
        (["-t", "toy_beta", "-a", "use_cache=x.db"], "use_cache cannot be combined"),
        (["-t", "toy_beta", "-a", "parallelize"], "which is not key=value"),
        (["-t", "toy_beta", "--backend", "tgi"], "No backend is called 'tgi'"),
        (["-t", "toy_beta", "--resume"], "Nothing to resume"),
        (["-t", "mmlu", "--mmlu-dir", "no-such-dir"], "no-such-dir"),
    ],
)
def test_wrong_usage_is_refused(
    refused: Any,
    tmp_path: Path,
    byte_model: Path,
    toy_tasks: Path,
    arguments: list[str],
    message: str,
) -> None:
    code, error = refused(
        "record", "-m", byte_model, "--include-path", toy_tasks, "-o", tmp_path / "t", *arguments
    )
    assert code == 2
    assert message in error


def test_outputs_in_the_way_are_left_alone(
    refused: Any, tmp_path: Path, byte_model: Path, toy_tasks: Path
) -> None:
    arguments = ["record", "-m", byte_model, "-t", "toy_beta", "--include-path", toy_tasks]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    code, error = refused(*arguments, "-o", tmp_path / "mine", "--force")
    assert code == 2
    assert "is not a trace, so it is left alone" in error
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "run.json").write_text('{"moe_probe_trace": 1}')
    code, error = refused(*arguments, "-o", tmp_path / "old")
    assert code == 2
    assert "--resume to continue it or --force to replace it" in error
    code, error = refused(*arguments, "-o", "/proc/moe-probe")
    assert code == 2
    assert "Cannot write to /proc/moe-probe" in error


def test_full_disk_is_found_before_the_evaluation(
    probe: Any,
    tmp_path: Path,
    byte_model: Path,
    toy_tasks: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_space(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", no_space)
    code, _, err = probe(
        "record", "-m", byte_model, "-t", "toy_beta", "--include-path", toy_tasks,
        "-o", tmp_path / "t", "-q",
    )  # fmt: skip
    assert code == 1
    assert "No space left on device" in err
    assert "Traceback" not in err


def test_unreadable_block_is_refused_by_name(refused: Any, tmp_path: Path, toy_tasks: Path) -> None:
    config = transformers.JetMoeConfig(
        vocab_size=300, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_key_value_heads=2, kv_channels=16, num_local_experts=8, num_experts_per_tok=2,
    )  # fmt: skip
    folder = save_byte_model(tmp_path / "jetmoe")
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    code, error = refused(
        "record", "-m", folder, "-t", "toy_beta", "--include-path", toy_tasks, "-o", tmp_path / "t"
    )
    assert code == 1
    assert "JetMoe" in error
    assert "docs/capture.md" in error


def test_dry_run_measures_and_writes_nothing(
    probe: Any, tmp_path: Path, byte_model: Path, toy_tasks: Path
) -> None:
    arguments = ["-m", byte_model, "-t", "toy_alpha,toy_words", "--include-path", toy_tasks]
    _, out, _ = probe("record", *arguments, "-o", tmp_path / "t", "--dry-run")
    said = dict(line.split(":", 1) for line in out.splitlines())
    assert said["documents"].split() == ["16"]
    assert said["MoE layers"].split() == ["2"]
    assert not (tmp_path / "t").exists()
    code, _, _ = probe("record", *arguments, "-o", tmp_path / "t", "-q")
    assert code == 0
    completeness = open_trace(tmp_path / "t").run["completeness"]
    tokens = completeness["expected_tokens"]
    assert said["tokens to run"].split() == [f"{tokens / 1000:.1f}k"]


def test_baseline_records_scores_of_a_dense_model(
    probe: Any, tmp_path: Path, toy_tasks: Path
) -> None:
    folder = save_byte_model(tmp_path / "dense")
    shape = {k: v for k, v in SHAPE.items() if "expert" not in k and not k.startswith("m")}
    dense = transformers.AutoModelForCausalLM.from_config(transformers.LlamaConfig(**shape))
    dense.save_pretrained(folder)
    code, out, _ = probe(
        "record", "-m", folder, "-t", "toy_beta", "--include-path", toy_tasks, "--baseline",
        "-o", tmp_path / "t",
    )  # fmt: skip
    assert code == 0
    assert "toy_beta" in out
    trace = open_trace(tmp_path / "t")
    assert trace.layers == {}
    rows = trace.sequences.to_pylist()
    assert len(rows) == 8
    assert all(len(row["choice_logliks"]) == 4 and row["correct"] is not None for row in rows)
    for command in ("report", "check"):
        code, out, err = probe(command, tmp_path / "t")
        assert (code, out) == (1, "")
        assert "recorded with --baseline" in err


def test_interrupt_keeps_the_data_and_says_how_to_go_on(
    probe: Any, tmp_path: Path, byte_model: Path, toy_tasks: Path
) -> None:
    output = tmp_path / "my trace"
    arguments = [
        "record", "-m", str(byte_model), "-t", "toy_words,toy_alpha", "--include-path",
        str(toy_tasks), "--num-fewshot", "4", "-b", "1", "-o", str(output),
    ]  # fmt: skip
    slow = (
        "import time, moe_probe.trace.writer as w\n"
        "write = w.TraceWriter.write\n"
        "def slowly(self, *a, **k):\n"
        f"    write(self, *a, **k)\n    open({str(tmp_path / 'written')!r}, 'a').close()\n"
        "    time.sleep(0.2)\n"
        "w.TraceWriter.write = slowly\n"
        "from moe_probe.cli import main\nmain()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", slow, *arguments], stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "written").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    resume = next(line for line in err.splitlines() if line.startswith("Resume: "))
    trace = open_trace(output)
    assert trace.run["status"] == "interrupted"
    assert 0 < trace.sequences.num_rows < 34
    assert json.loads((output / "run.json").read_text())["completeness"]["shortfall"] > 0
    code, out, _ = probe(*shlex.split(resume)[2:])
    assert code == 0
    assert "complete" in out
    assert open_trace(output).run["status"] == "complete"
