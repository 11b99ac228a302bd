"""What recording costs: the same work with and without, in turn.

    python -m benchmarks.overhead [--backend hf|vllm] [--pairs 7] [--brief]

Prints, per workload and capture level, the median ratio of time with recording to without. With
`hf` that is an evaluation in CPU time, which counts every thread, the background writer's too. With
`vllm` it is a batch of requests in an engine of one computing thread, in CPU time and on the clock.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from moe_probe import output
from moe_probe.evaluation.engines import backend_of
from moe_probe.evaluation.plan import RecordOptions, RecordPlan, make_plan
from moe_probe.evaluation.run import evaluate, record_evaluation
from moe_probe.models import resolve_model
from moe_probe.trace import Capture
from tests.toy import save_byte_model, save_toy_tasks
from tests.vllm.engines import generate
from tests.vllm.recorded import call, recorded_engine

Row = list[object]

# Tasks, and how many times their documents: runs of 10 s and more, or what is done once, such as
# reserving the staging files, would stand for what is done per token.
WORKLOADS = {"prefill": (["toy_alpha", "toy_beta"], 4), "generate": (["toy_generate"], 10)}
# Prompts, tokens of each, new tokens.
BATCHES = {"prefill": (32, 256, 1), "decode": (32, 16, 64)}
SHAPE: dict[str, Any] = {
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "num_experts": 32,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 160,
    "mlp_only_layers": [],
}


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--backend", choices=["hf", "vllm"], default="hf")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--brief", action="store_true", help="One pair, to see that it runs.")
    arguments = parser.parse_args()
    pairs = 1 if arguments.brief else arguments.pairs
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        model = save_byte_model(Path(folder) / "model", **SHAPE)
        if arguments.backend == "hf":
            rows = list(evaluations(model, Path(folder), pairs))
        else:
            rows = list(engine_batches(model, Path(folder), pairs))
    output.result("Seconds without recording, and the ratio with / without:")
    header = ["workload", "capture", "time", "pairs", "without", "min", "median", "max"]
    output.table(header, rows)


def row(workload: str, capture: Capture, time_of: str, pairs: list[tuple[float, float]]) -> Row:
    """One line of the table from pairs of seconds without and with."""
    ratios = [with_ / without for without, with_ in pairs]
    median = statistics.median(without for without, _ in pairs)
    scatter = (min(ratios), statistics.median(ratios), max(ratios))
    return [workload, str(capture), time_of, len(pairs), median, *scatter]


def evaluations(model: Path, folder: Path, pairs: int) -> Iterator[Row]:
    """Evaluations by lm-eval's Hugging Face class."""
    for workload, (names, scale) in WORKLOADS.items():
        (tasks := folder / workload).mkdir()
        save_toy_tasks(tasks, scale=scale)
        for capture in (Capture.IDS, Capture.WEIGHTS):
            options = RecordOptions(
                model=resolve_model(str(model)),
                tasks=names,
                output=folder / "trace",
                num_fewshot=4,
                batch_size="4",
                dtype="float32",
                capture=capture,
                include_path=tasks,
                quiet=True,
            )
            yield row(workload, capture, "CPU", measure(options, pairs))


def measure(options: RecordOptions, pairs: int) -> list[tuple[float, float]]:
    """Return pairs of CPU seconds without and with recording."""
    plan = make_plan(options)
    lm, items = backend_of(options).load(options), plan.tasks.load()
    evaluate(plan, lm, items)
    seconds = []
    for pair in range(pairs):
        recorded: RecordPlan = replace(
            plan,
            options=replace(options, output=options.output.with_name(f"trace-{pair}"), force=True),
        )
        # Every other pair starts with the other one, so that drift does not favour either.
        for first in (pair % 2 == 0, pair % 2 == 1):
            start = time.process_time()
            if first:
                evaluate(plan, lm, items)
                without = time.process_time() - start
            else:
                record_evaluation(recorded, lm, items)
                with_ = time.process_time() - start
        seconds.append((without, with_))
    return seconds


def engine_batches(model: Path, folder: Path, pairs: int) -> Iterator[Row]:
    """Batches of requests in a vLLM engine in this process."""
    arguments = {"max_model_len": 512, "max_num_seqs": 32, "enable_prefix_caching": False}
    one_thread = {"VLLM_CPU_OMP_THREADS_BIND": "0"}
    for capture in (Capture.IDS, Capture.WEIGHTS):
        with recorded_engine(
            model, folder / str(capture), capture=capture, environment=one_thread, **arguments
        ) as llm:
            for workload, (num_prompts, num_tokens, num_new) in BATCHES.items():
                prompts = [
                    [(7 * i + j) % 256 for j in range(num_tokens)] for i in range(num_prompts)
                ]
                times = engine_pairs(llm, prompts, num_new, pairs)
                for index, name in enumerate(("CPU", "clock")):
                    chosen = [(without[index], with_[index]) for without, with_ in times]
                    yield row(f"vllm {workload}", capture, name, chosen)


def engine_pairs(
    llm: Any, prompts: list[list[int]], num_new: int, pairs: int
) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    """Return pairs of (CPU, clock) seconds of a batch, without the probe and with it."""
    generate(llm, prompts, num_new)
    times = []
    for pair in range(pairs):
        taken = {}
        for is_probed in (pair % 2 == 0, pair % 2 == 1):
            with nullcontext() if is_probed else detached(llm):
                cpu, clock = time.process_time(), time.perf_counter()
                generate(llm, prompts, num_new)
                if is_probed:
                    # What the recorder still has to do for these requests counts.
                    call(llm, "flush")
                taken[is_probed] = (time.process_time() - cpu, time.perf_counter() - clock)
        times.append((taken[False], taken[True]))
    return times


@contextmanager
def detached(llm: Any) -> Iterator[None]:
    """Take the probe out of an engine: its routers and its runner are as vLLM made them."""
    worker = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker
    runner = worker.model_runner
    wrapped = [
        (module.router, "_compute_routing")
        for module in runner.get_model().modules()
        if type(module).__name__ == "MoERunner"
    ]
    wrapped.append((runner, "execute_model"))
    kept = [owner.__dict__.pop(name) for owner, name in wrapped]
    try:
        yield
    finally:
        for (owner, name), function in zip(wrapped, kept, strict=True):
            setattr(owner, name, function)


if __name__ == "__main__":
    main()
