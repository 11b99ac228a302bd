"""`moe-probe record`: capture every routing decision while lm-eval runs."""

from __future__ import annotations

import inspect
import os
import re
import shlex
import sys
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moe_probe import output
from moe_probe.cli.values import (
    parse_batch_size,
    parse_limit,
    parse_model_args,
    parse_sample,
)
from moe_probe.errors import MoeProbeError, UsageError

if TYPE_CHECKING:
    from moe_probe.evaluation.plan import RecordOptions
    from moe_probe.evaluation.run import RunResult


def record(
    model: Annotated[str, typer.Option("--model", "-m", help="Hub id, path, or short name.")],
    task: Annotated[
        list[str], typer.Option("--task", "-t", help="lm-eval task or group; may be repeated.")
    ],
    backend: Annotated[
        str, typer.Option("--backend", help="Engine: hf (transformers) or vllm.")
    ] = "hf",
    server: Annotated[
        str, typer.Option("--server", help="URL of a `vllm serve` with moe-probe; records there.")
    ] = "",
    num_fewshot: Annotated[
        int | None,
        typer.Option("--num-fewshot", min=0, help="Examples in the prompt. [task's own; mmlu: 5]"),
    ] = None,
    limit: Annotated[
        float | None, typer.Option("--limit", "-L", help="Documents per task, or a share below 1.")
    ] = None,
    batch_size: Annotated[
        str, typer.Option("--batch-size", "-b", help="Rows per forward pass. [hf: 8; vllm: auto]")
    ] = "",
    dtype: Annotated[
        str, typer.Option("--dtype", help="float32, bfloat16, ...; auto: float32 on a CPU.")
    ] = "auto",
    device: Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1; auto.")] = "auto",
    model_args: Annotated[
        str,
        typer.Option(
            "--model-args", "-a", help="key=value,... or a JSON object, for lm-eval's model class."
        ),
    ] = "",
    capture: Annotated[
        str, typer.Option("--capture", help="counts, ids, or weights: how much to keep.")
    ] = "ids",
    sample: Annotated[
        str, typer.Option("--sample", help="1/N: record one document in N, whole.")
    ] = "1/1",
    output_path: Annotated[
        Path | None, typer.Option("--output", "-o", help="Trace directory. [by model, task, date]")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", "-f", help="Replace an existing trace.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an unfinished trace.")] = False,
    baseline: Annotated[
        bool, typer.Option("--baseline", help="Scores only, for a dense model to compare with.")
    ] = False,
    mmlu_dir: Annotated[
        Path | None, typer.Option("--mmlu-dir", help="Offline copy from `moe-probe mmlu prepare`.")
    ] = None,
    include_path: Annotated[
        Path | None, typer.Option("--include-path", help="Folder of your own lm-eval tasks.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would run and how large it is; run nothing.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no hints.")] = False,
) -> None:
    """Run an lm-eval task and record every routing decision.

    Example: moe-probe record --model olmoe-1b-7b --task mmlu --num-fewshot 5 --limit 20
    """
    resume_command = _resume_command(dict(locals()))
    output.set_quiet(quiet)
    options = _options(
        backend="server" if server else backend,
        server=server.rstrip("/").removesuffix("/v1"),
        model=model,
        tasks=[name for names in task for name in names.split(",") if name],
        output_path=output_path,
        num_fewshot=num_fewshot,
        limit=parse_limit(limit),
        batch_size=parse_batch_size(batch_size, is_hf=not server and backend != "vllm"),
        dtype=dtype,
        device=device,
        model_args=parse_model_args(model_args),
        capture=capture,
        sample_every=parse_sample(sample),
        force=force,
        resume=resume,
        baseline=baseline,
        mmlu_dir=mmlu_dir,
        include_path=include_path,
        quiet=quiet,
    )
    if dry_run:
        _print_dry_run(options)
    else:
        _run(options, resume_command)


def _options(
    *, model: str, output_path: Path | None, capture: str, dtype: str, device: str, **rest: Any
) -> RecordOptions:
    from moe_probe.models import resolve_model

    resolved = resolve_model(model)
    _quiet_libraries()
    try:
        import torch

        from moe_probe.evaluation.plan import RecordOptions
        from moe_probe.trace import Capture
    except ImportError as error:
        raise UsageError(
            f"Recording needs {error.name}, which is not installed. "
            'Run: pip install "moe-probe[hf]"'
        ) from error
    if capture not in tuple(Capture):
        raise UsageError(f"No capture level is called {capture!r}. Use {', '.join(Capture)}.")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if dtype == "auto" and device == "cpu":
        dtype = "float32"
    if dtype != "auto" and not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise UsageError(f"No dtype is called {dtype!r}. Use float32, bfloat16, float16 or auto.")
    if resolved.name != model:
        output.note(f"Model: {resolved.name}")
    return RecordOptions(
        model=resolved,
        output=output_path or _default_output(model, rest["tasks"]),
        capture=Capture(capture),
        dtype=dtype,
        device=device,
        **rest,
    )


def _run(options: RecordOptions, resume_command: str) -> None:
    from moe_probe.evaluation.plan import make_plan

    plan = make_plan(options)
    from moe_probe.evaluation.run import run_recording

    output.note(f"Trace: {options.server or options.output}")
    try:
        result = run_recording(plan)
    except KeyboardInterrupt:
        output.note("")
        output.error(f"Interrupted. What was recorded is kept in {options.output}.")
        output.note(f"Resume: {resume_command}")
        sys.exit(130)
    _print_result(result)
    missing = result.completeness.shortfall
    if missing:
        raise MoeProbeError(
            f"The trace is incomplete: {missing} of {result.completeness.expected_tokens} tokens "
            f"were not recorded. See completeness in {result.path / 'run.json'}."
        )


def _print_dry_run(options: RecordOptions) -> None:
    from moe_probe.evaluation.dryrun import measure
    from moe_probe.evaluation.plan import make_plan

    plan = make_plan(options)
    size = measure(plan)
    rows = [
        ("model", options.model.identifier),
        ("memory", f"{plan.memory}; {output.quantity(plan.available, 'B')} available"),
        ("tasks", f"{len(plan.tasks.facts)} ({', '.join(options.tasks)})"),
        ("documents", size.num_documents),
        ("tokens to run", output.quantity(size.num_tokens)),
        ("tokens to store", output.quantity(size.num_new_tokens)),
        ("MoE layers", size.num_layers),
        ("trace", f"about {output.quantity(size.trace_bytes, 'B')} at {options.capture}"),
        ("output", options.output),
    ]
    for name, value in rows:
        output.result(f"{name + ':':<17}{value}")


def _print_result(result: RunResult) -> None:
    from lm_eval.utils import make_table

    output.result(make_table(result.results).rstrip())
    if result.results.get("groups"):
        output.result(make_table(result.results, "groups").rstrip())
    totals = result.completeness
    where = f"in each of {len(totals.layers)} MoE layers" if totals.layers else "for scores only"
    state = "complete" if totals.shortfall == 0 else f"{totals.shortfall} MISSING"
    tokens = f"{totals.recorded_tokens} of {totals.expected_tokens} tokens {where}: {state}"
    if result.num_sequences is None:
        output.result(tokens)
        output.result(f"{result.path} on the server")
        return
    output.result(f"{result.num_sequences} sequences, {tokens}")
    size = sum(path.stat().st_size for path in result.path.rglob("*") if path.is_file())
    output.result(f"{result.path} ({output.quantity(size, 'B')})")
    if totals.layers:
        output.note(f"Next: moe-probe report {shlex.quote(str(result.path))}")


def _default_output(model: str, tasks: list[str]) -> Path:
    parts = [Path(model).name, "+".join(tasks), date.today().isoformat()]
    return Path("moe-probe-" + "-".join(re.sub(r"[^\w.+-]", "_", part) for part in parts))


def _resume_command(arguments: dict[str, Any]) -> str:
    """Write the command that continues a run of `record` with these arguments."""
    words = ["moe-probe", "record"]
    for name, parameter in inspect.signature(record).parameters.items():
        value = arguments[name]
        option = "--output" if name == "output_path" else f"--{name.replace('_', '-')}"
        if value == parameter.default or name in ("force", "resume"):
            continue
        if value is True:
            words.append(option)
        else:
            for each in value if isinstance(value, list) else [value]:
                words += [option, str(each)]
    if arguments["output_path"] is None:
        words += ["--output", str(_default_output(arguments["model"], arguments["task"]))]
    return shlex.join([*words, "--resume"])


def _quiet_libraries() -> None:
    """Keep other libraries' bars off stderr; must come before they are imported."""
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
