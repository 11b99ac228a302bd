"""What recording costs: the same evaluation with and without, in turn, in CPU time.

    python -m benchmarks.overhead [--pairs 7] [--brief]

Prints, per workload and capture level, the median ratio of process CPU time with recording to
without. CPU time counts every thread, the background writer's too.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from moe_probe import output
from moe_probe.evaluation.backend import backend_of
from moe_probe.evaluation.plan import RecordOptions, RecordPlan, make_plan
from moe_probe.evaluation.run import evaluate, record_evaluation
from moe_probe.models import resolve_model
from moe_probe.trace import Capture
from tests.toy import save_byte_model, save_toy_tasks

# Tasks, and how many times their documents: runs of 10 s and more, or what is done once, such as
# reserving the staging files, would stand for what is done per token.
WORKLOADS = {"prefill": (["toy_alpha", "toy_beta"], 4), "generate": (["toy_generate"], 10)}
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
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--brief", action="store_true", help="One pair, to see that it runs.")
    arguments = parser.parse_args()
    pairs = 1 if arguments.brief else arguments.pairs
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        model = save_byte_model(Path(folder) / "model", **SHAPE)
        for workload, (names, scale) in WORKLOADS.items():
            (tasks := Path(folder) / workload).mkdir()
            save_toy_tasks(tasks, scale=scale)
            for capture in (Capture.IDS, Capture.WEIGHTS):
                options = RecordOptions(
                    model=resolve_model(str(model)),
                    tasks=names,
                    output=Path(folder) / "trace",
                    num_fewshot=4,
                    batch_size="4",
                    dtype="float32",
                    capture=capture,
                    include_path=tasks,
                    quiet=True,
                )
                without, ratios = measure(options, pairs)
                rows.append(
                    [workload, str(capture), pairs, without, min(ratios),
                     statistics.median(ratios), max(ratios)]
                )  # fmt: skip
    output.result("CPU seconds without recording, and the ratio with / without:")
    output.table(["workload", "capture", "pairs", "without", "min", "median", "max"], rows)


def measure(options: RecordOptions, pairs: int) -> tuple[float, list[float]]:
    """Return the median CPU seconds without recording, and each pair's ratio."""
    plan = make_plan(options)
    lm, items = backend_of(options).load(options), plan.tasks.load()
    evaluate(plan, lm, items)
    seconds, ratios = [], []
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
        seconds.append(without)
        ratios.append(with_ / without)
    return statistics.median(seconds), ratios


if __name__ == "__main__":
    main()
