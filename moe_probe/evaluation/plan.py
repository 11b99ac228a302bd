"""What a recording is going to be: everything that can be refused is refused here, before a model
is loaded."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_probe.errors import CaptureError, UsageError
from moe_probe.evaluation.sizing import MemoryNeed, available_memory, check_fits, estimate_memory
from moe_probe.evaluation.tasks import TaskPlan, load_tasks
from moe_probe.models import ResolvedModel
from moe_probe.trace import Capture, check_output

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


BACKENDS = ("hf", "vllm")


@dataclass(frozen=True, kw_only=True)
class RecordOptions:
    """What the user asked for."""

    model: ResolvedModel
    tasks: list[str]
    output: Path
    num_fewshot: int | None = None
    limit: float | None = None
    batch_size: str = "1"
    dtype: str = "auto"
    device: str = "cpu"
    model_args: dict[str, Any] = field(default_factory=dict)
    backend: str = "hf"
    server: str = ""
    capture: Capture = Capture.IDS
    sample_every: int = 1
    force: bool = False
    resume: bool = False
    baseline: bool = False
    mmlu_dir: Path | None = None
    include_path: Path | None = None
    quiet: bool = False

    def fingerprint(self) -> dict[str, Any]:
        """What two runs must share for one to continue the other."""
        return {
            "model": self.model.name,
            "backend": self.backend,
            "tasks": self.tasks,
            "num_fewshot": self.num_fewshot,
            "limit": self.limit,
            "dtype": self.dtype,
            "capture": str(self.capture),
            "sample_every": self.sample_every,
            "baseline": self.baseline,
        }


@dataclass(frozen=True, kw_only=True)
class RecordPlan:
    """What the options resolve to."""

    options: RecordOptions
    tasks: TaskPlan
    config: PreTrainedConfig
    memory: MemoryNeed
    available: int
    num_fewshot: int | None
    """As asked for; MMLU, whose published scores are 5-shot, gets 5 where nothing was asked."""


def make_plan(options: RecordOptions) -> RecordPlan:
    """Resolve tasks, configuration and memory.

    Raises:
        UsageError: unknown tasks, an output in the way, arguments that do not fit.
        CaptureError: a dense model without `baseline`.
        MoeProbeError: the model does not fit the device.
    """
    _refuse_unsupported(options)
    if options.backend != "server":
        check_output(options.output, resume=options.resume, force=options.force)
        _refuse_read_only(options.output)
    if options.model_args.get("use_cache"):
        raise UsageError(
            "use_cache cannot be combined with recording: cached answers route no tokens. "
            "Leave it out of --model-args."
        )
    tasks = load_tasks(options.tasks, mmlu_dir=options.mmlu_dir, include_path=options.include_path)
    config = load_config(options.model, options.model_args)
    _refuse_dense(config, baseline=options.baseline)
    memory = estimate_memory(config, options.dtype)
    everywhere = bool(options.model_args.get("parallelize"))
    available = available_memory(options.device, all_devices=everywhere)
    if options.backend == "hf":
        # vLLM spreads a model over devices and reserves memory by rules of its own.
        check_fits(memory, available, device=options.device)
    return RecordPlan(
        options=options,
        tasks=tasks,
        config=config,
        memory=memory,
        available=available,
        num_fewshot=_num_fewshot(options, tasks),
    )


def load_config(model: ResolvedModel, model_args: dict[str, Any]) -> PreTrainedConfig:
    """Read a model's configuration; raises UsageError where it cannot be had."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(
            model.identifier,
            revision=model_args.get("revision", "main"),
            trust_remote_code=bool(model_args.get("trust_remote_code", False)),
        )
    except (OSError, ValueError) as error:
        cause = str(error).strip().split("\n")[0].rstrip(".")
        raise UsageError(
            f"The configuration of {model.identifier} cannot be read: {cause}. "
            "Check the name and the network, or pass the path of a local copy."
        ) from error


def _num_fewshot(options: RecordOptions, tasks: TaskPlan) -> int | None:
    is_mmlu = all(facts.task == f"mmlu_{facts.subject}" for facts in tasks.facts.values())
    return 5 if options.num_fewshot is None and is_mmlu else options.num_fewshot


def _refuse_dense(config: PreTrainedConfig, *, baseline: bool) -> None:
    from moe_probe.hooks.config_facts import num_experts

    experts = num_experts(config)
    if experts <= 1 and not baseline:
        raise CaptureError(
            f"{config.model_type} is a dense model: its configuration names no routed experts, so "
            "there are no routers to record. Use --baseline to record its scores only."
        )


def _refuse_unsupported(options: RecordOptions) -> None:
    if options.backend == "server":
        _refuse_servers_own(options)
    elif options.backend not in BACKENDS:
        raise UsageError(
            f"No backend is called {options.backend!r}. Use --backend {' or '.join(BACKENDS)}."
        )
    if options.backend == "vllm":
        if options.baseline:
            raise UsageError("--baseline runs with --backend hf only. Leave out --backend.")
        if find_spec("vllm") is None:
            raise UsageError(
                "--backend vllm needs vllm, which is not installed. "
                'Run: pip install "moe-probe[vllm]"'
            )


def _refuse_servers_own(options: RecordOptions) -> None:
    """Refuse what is for whoever starts the server to say, and was said when it started."""
    given = {
        "--resume": options.resume,
        "--force": options.force,
        "--baseline": options.baseline,
        "--sample": options.sample_every > 1,
    }
    for name, is_given in given.items():
        if is_given:
            raise UsageError(f"{name} has no meaning with --server. Leave it out.")
    if find_spec("tenacity") is None:
        raise UsageError(
            "--server needs lm-eval's API models, whose packages are not installed. "
            'Run: pip install "lm_eval[api]"'
        )


def _refuse_read_only(output: Path) -> None:
    """Find out now whether the output can be written, by making its folder."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        probe = output / ".write-test"
        probe.touch()
        probe.unlink()
        if not any(output.iterdir()):
            output.rmdir()
    except OSError as error:
        raise UsageError(
            f"Cannot write to {output}: {error.strerror}. Choose another --output."
        ) from error
