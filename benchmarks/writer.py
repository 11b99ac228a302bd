"""How fast the crash-safe writer is, and how small its traces are, on synthetic routing.

    python -m benchmarks.writer [--shape v3|qwen3|mixtral] [--tokens N] [--capture ids|weights]

The model thread offers rows as fast as it can, so that the writer's thread is what limits. The
same bytes, layer by layer, go through plain zstd level 1 in the same run: machines differ, the
ratio does not. One selection is one (token, layer, slot) expert id.

Shape suffixes: T tokens, K slots, N experts, B bytes of one token's ids, S slots of one token.
"""

from __future__ import annotations

import argparse
import math
import resource
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.support.child import peak_mib
from moe_probe.trace import Capture, LayerSpec, RowLayout, Sequence, TraceWriter
from moe_probe.trace.schema import SEGMENT_TOKENS

SHAPES = {"v3": (58, 256, 8), "qwen3": (48, 128, 8), "mixtral": (32, 8, 2)}
"""MoE layers, routed experts, slots."""

FORWARD_TOKENS = 2048
# The hottest of 256 experts gets about five times the mean, as the hottest of real routers do.
ZIPF_EXPONENT = 0.6
# Like MMLU without shots.
MEDIAN_PROMPT_TOKENS = 95
TOKENS_PER_SUBJECT = 27_000


@dataclass(frozen=True)
class Rows:
    """As many distinct tokens as a part has, so that no part repeats text within a column."""

    layout: RowLayout
    ids_TB: np.ndarray
    weights_TS: np.ndarray
    entropy: float
    """Bytes per selection of the best code that knows each layer's popularity only."""

    @classmethod
    def synthetic(cls, shape: str) -> Rows:
        """Route by Gumbel top-k over a Zipf popularity that every layer permutes."""
        num_layers, num_experts, top_k = SHAPES[shape]
        rng = np.random.default_rng(0)
        log_popularity_N = -ZIPF_EXPONENT * np.log(np.arange(1, num_experts + 1))
        ids_TK = np.empty((SEGMENT_TOKENS, top_k), np.int64)
        weights_TK = np.empty((SEGMENT_TOKENS, top_k))
        for rows in np.split(np.arange(SEGMENT_TOKENS), 16):  # memory stays small
            scores_TN = rng.gumbel(size=(len(rows), num_experts)) + log_popularity_N
            ids_TK[rows] = np.argsort(-scores_TN, axis=1)[:, :top_k]
            best_TK = np.take_along_axis(scores_TN, ids_TK[rows], axis=1)
            weights_TK[rows] = np.exp(best_TK - best_TK[:, :1])
        weights_TK /= weights_TK.sum(axis=1, keepdims=True)
        layers = tuple(
            LayerSpec(layer=layer, num_experts=num_experts, top_k=top_k)
            for layer in range(num_layers)
        )
        rolls = [rng.integers(SEGMENT_TOKENS) for _ in layers]
        layout = RowLayout(layers)
        ids_TB = layout.pack(rng.permutation(num_experts)[np.roll(ids_TK, n, 0)] for n in rolls)
        weights = [np.roll(weights_TK, n, 0).astype(np.float16) for n in rolls]
        share_N = np.bincount(ids_TK.ravel()) / ids_TK.size
        entropy = -(share_N * np.log2(share_N)).sum() / 8
        return cls(layout, ids_TB, np.concatenate(weights, axis=1), float(entropy))


@dataclass(frozen=True)
class Result:
    """One sustained run; times in seconds."""

    selections: int
    wall: float
    writer_cpu: float
    inside_write: float
    forwards: int
    stalls: int
    stalled: float
    routing_bytes: int
    other_bytes: int


def sustain(rows: Rows, capture: Capture, tokens: int, folder: Path) -> Result:
    """Write `tokens` tokens in prompts of ragged length, without a pause."""
    rng = np.random.default_rng(1)
    path = folder / "trace"
    writer = TraceWriter(path, layers=list(rows.layout.layers), capture=capture)
    inside, written, first = 0.0, 0, 0
    process, main, start = time.process_time(), time.thread_time(), time.perf_counter()
    while written < tokens:
        length = int(np.clip(MEDIAN_PROMPT_TOKENS * np.exp(0.6 * rng.normal()), 25, 1200))
        first = first if first + length <= SEGMENT_TOKENS else 0
        chosen = slice(first, first + length)
        sequence = Sequence(
            sequence_id=writer.next_sequence_id(),
            num_tokens=length,
            task="mmlu",
            subject=f"subject {written // TOKENS_PER_SUBJECT}",
            question_end=length - 2,
            cue_end=length - 1,
        )
        before = time.perf_counter()
        writer.write(sequence, rows.ids_TB[chosen], weights_TS=rows.weights_TS[chosen])
        inside += time.perf_counter() - before
        written, first = written + length, first + length
    main = time.thread_time() - main
    writer.close()
    wall = time.perf_counter() - start
    sizes = {
        kind: sum(part.stat().st_size for part in (path / kind).glob("*.parquet"))
        for kind in ("routing", "counts", "sequences")
    }
    shutil.rmtree(path)
    return Result(
        selections=written * rows.layout.num_slots,
        wall=wall,
        writer_cpu=time.process_time() - process - main,
        inside_write=inside - writer.stats.stalled_seconds,
        forwards=math.ceil(written / FORWARD_TOKENS),
        stalls=writer.stats.stalls,
        stalled=writer.stats.stalled_seconds,
        routing_bytes=sizes["routing"],
        other_bytes=sizes["counts"] + sizes["sequences"],
    )


def zstd_speed(rows: Rows) -> float:
    """Selections per CPU-second that plain zstd level 1 compresses, layer by layer."""
    columns = [rows.layout.layer_ids(rows.ids_TB, i) for i in range(len(rows.layout.layers))]
    codec = pa.Codec("zstd", 1)
    best = math.inf
    for _ in range(3):
        start = time.thread_time()
        for column in columns:
            codec.compress(pa.py_buffer(column), asbytes=False)
        best = min(best, time.thread_time() - start)
    return SEGMENT_TOKENS * rows.layout.num_slots / best


def report(shape: str, rows: Rows, capture: Capture, result: Result, zstd: float) -> None:
    """Print one run as a block of a table."""
    raw = result.selections * rows.layout.ids_bytes / rows.layout.num_slots
    speed = result.selections / result.wall
    cpu_speed = result.selections / result.writer_cpu
    lines = [
        ("sustained, wall, M selections/s", f"{speed / 1e6:.0f}"),
        ("writer's thread, M selections per CPU-second", f"{cpu_speed / 1e6:.0f}"),
        ("plain zstd-1, M selections per CPU-second", f"{zstd / 1e6:.0f}"),
        ("ratio to plain zstd-1, CPU", f"{cpu_speed / zstd:.2f}"),
        (
            f"inside write, us per forward of {FORWARD_TOKENS} tokens",
            f"{result.inside_write / result.forwards * 1e6:.0f}",
        ),
        ("stalls", f"{result.stalls} ({result.stalled:.1f} of {result.wall:.1f} s)"),
        ("routing, bytes per selection", f"{result.routing_bytes / result.selections:.3f}"),
        ("  as a ratio to raw ids", f"{result.routing_bytes / raw:.3f}"),
        ("  order-0 entropy of the ids", f"{rows.entropy:.3f}"),
        ("counts and sequences, MB", f"{result.other_bytes / 1e6:.1f}"),
        ("peak RSS, MiB", f"{peak_mib(resource.getrusage(resource.RUSAGE_SELF)):.0f}"),
    ]
    print(f"{shape}, {capture}: {result.selections / 1e6:.0f} M selections")
    for name, value in lines:
        print(f"  {name:<48}{value:>16}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, action="append", help="default: all")
    parser.add_argument("--capture", choices=["ids", "weights"], action="append")
    parser.add_argument("--tokens", type=int, default=8 * SEGMENT_TOKENS)
    parser.add_argument("--brief", action="store_true", help="Few tokens, to see that it runs.")
    arguments = parser.parse_args()
    tokens = SEGMENT_TOKENS if arguments.brief else arguments.tokens
    for shape in arguments.shape or SHAPES:
        rows = Rows.synthetic(shape)
        zstd = zstd_speed(rows)
        for capture in map(Capture, arguments.capture or ["ids", "weights"]):
            with tempfile.TemporaryDirectory() as folder:
                result = sustain(rows, capture, tokens, Path(folder))
            report(shape, rows, capture, result, zstd)


if __name__ == "__main__":
    main()
