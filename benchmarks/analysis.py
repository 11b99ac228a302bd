"""What the analysis costs, against decoding alone, general tools, and what the machine can do.

    python -m benchmarks.analysis [--kind distinct|5shot|both] [--tokens N] [--brief]

On synthetic traces in the shape of DeepSeek-V3. Every number is the median of 5 warm rounds, in
which what is compared ran in turn in one fresh process; a ratio is the median of each round's.
Memory is that of a fresh process which does one pass. `bincount` is decoding and np.bincount. One
selection is one (token, layer, slot) expert id.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.support.child import in_child
from benchmarks.support.commands import IMPORTS, report, report_and_imports
from moe_probe import output

Times = Sequence[Sequence[float]]

ROUNDS = 5
KINDS = ("distinct", "5shot")
PASSES = ("decode", "bincount", "counts", "core scan", "default scan", "analysis")
SELECTIONS = 58 * 8
"""Of each token."""
# Tokens each engine counts: about a second of its time.
ENGINES = {"DuckDB": 65_536, "polars": 65_536, "pandas": 4096, "pyarrow + np.bincount": 65_536}
# How much longer a trace is that should need no more memory.
LONGER = 10


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kind", choices=[*KINDS, "both"], default="both")
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--brief", action="store_true", help="Little of all, to see that it runs.")
    arguments = parser.parse_args()
    # Even briefly enough for the compiled loops.
    tokens, rounds = (70_000, 1) if arguments.brief else (arguments.tokens, ROUNDS)
    limits(rounds)
    for kind in KINDS if arguments.kind == "both" else [arguments.kind]:
        with written(kind, tokens) as (trace, num_tokens):
            speed = passes(trace, kind, num_tokens, rounds)
            memory(trace, kind, num_tokens)
            if kind == KINDS[0]:
                engines(trace, speed, rounds)
        if not arguments.brief:
            with written(kind, LONGER * tokens) as (trace, num_tokens):
                memory(trace, kind, num_tokens)
    starting(rounds)


@contextmanager
def written(kind: str, tokens: int) -> Iterator[tuple[str, int]]:
    """A synthetic trace, and how many tokens it has."""
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "trace")
        target = "benchmarks.synthetic:write_synthetic"
        yield path, in_child(target, path=path, tokens=tokens, kind=kind).value


def limits(rounds: int) -> None:
    """What one core can do at most."""
    limit = in_child("benchmarks.support.limits:measure", rounds=rounds).value
    output.result("Limits of one core, G/s:")
    output.table(list(limit), [[value / 1e9 for value in limit.values()]])


def passes(trace: str, kind: str, tokens: int, rounds: int) -> float:
    """Time passes; returns the selections per CPU-second that counting alone does."""
    target, names = "benchmarks.support.passes:timed", list(PASSES)
    times: dict[str, Times] = in_child(target, path=trace, names=names, rounds=rounds).value
    selections = tokens * SELECTIONS
    rows = []
    for name, rounds_of in times.items():
        wall, cpu = (statistics.median(column) for column in zip(*rounds_of, strict=True))
        millions = selections / wall / 1e6, selections / cpu / 1e6
        rows.append([name, wall, cpu, *millions, *ratio(rounds_of, times["decode"])])
    output.result(f"\n{kind}, {tokens:,} tokens, {output.quantity(selections)} selections, warm:")
    header = ["pass", "wall s", "CPU s", "M/s", "M/CPU-s", "wall / decode", "CPU / decode"]
    output.table(header, rows)
    return selections / statistics.median(cpu for _, cpu in times["counts"])


def ratio(times: Times, others: Times) -> list[float]:
    """Median ratios round by round, number by number."""
    pairs = [zip(one, other, strict=True) for one, other in zip(times, others, strict=True)]
    by_round = [[mine / its for mine, its in pair] for pair in pairs]
    return [statistics.median(column) for column in zip(*by_round, strict=True)]


def engines(trace: str, speed: float, rounds: int) -> None:
    """Count with general tools what counting alone counted at `speed`."""
    rows: list[list[Any]] = [["moe-probe", speed / 1e6, 1.0]]
    with tempfile.TemporaryDirectory() as folder:
        for engine, tokens in ENGINES.items():
            path, module = str(Path(folder) / "lists.parquet"), "benchmarks.support.engines"
            write, measure = f"{module}:write_lists", f"{module}:measure"
            selections = in_child(write, trace=trace, path=path, tokens=tokens).value
            seconds = in_child(measure, engine=engine, path=path, rounds=rounds).value
            rows.append([engine, selections / seconds / 1e6, speed * seconds / selections])
    output.result(
        "\nCounts by layer and expert, M selections per CPU-second; lists for the others:"
    )
    output.table(["tool", "M/CPU-s", "moe-probe / it"], rows)


def memory(trace: str, kind: str, tokens: int) -> None:
    """Time and most memory of each pass in a process of its own, and of the whole command."""
    rows = []
    for name in PASSES:
        (wall, cpu), peak = in_child("benchmarks.support.passes:once", path=trace, name=name)
        rows.append([name, wall, cpu, peak])
    rows.append(["moe-probe report", *report(trace)])
    output.result(f"\n{kind}, {tokens:,} tokens, a fresh process each:")
    output.table(["pass", "wall s", "CPU s", "peak RSS, MiB"], rows)


def starting(rounds: int) -> None:
    """`moe-probe report` on the bundled example, against importing what it cannot do without."""
    reports, imports = report_and_imports(rounds)
    rows = [
        [name, *(statistics.median(column) for column in zip(*costs, strict=True))]
        for name, costs in (("moe-probe report", reports), (f"python -c '{IMPORTS}'", imports))
    ]
    rows.append(["ratio", *ratio(reports, imports)])
    output.result("\nFrom a cold start, seconds:")
    output.table(["command", "wall", "CPU", "peak RSS, MiB"], rows)


if __name__ == "__main__":
    main()
