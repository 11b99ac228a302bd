"""Synthetic traces in the shape of real models, of any length, written as a recording is.

    python -m benchmarks.synthetic [PATH] [--shape v3|qwen3|mixtral] [--kind distinct|5shot]
                                   [--tokens N] [--brief]

Every token is routed by itself: no block of rows is used again, but for the prefixes of `5shot`.
`distinct` has documents of about 300 tokens. `5shot` has questions of about 110 tokens behind a
prefix of 500 to 900, which is the same for all of a subject and is stored again with each: the
most that a reader can be given. Without PATH the trace is written to be timed only.

Shape suffixes: T tokens, D documents, B bytes of one token's ids.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.support.routers import SHAPES, Router
from moe_probe.trace import Sequence, TraceWriter

KINDS = ("distinct", "5shot")
NUM_SUBJECTS = 57

# Tokens routed at a time: all that is in memory beside the writer's segments.
_BATCH_TOKENS = 8192
_VOCABULARY, _ZIPF_EXPONENT = 20_000, 1.05
_PREFIX_TOKENS = (500, 900)
# Median, spread of the logarithm, least and most.
_DOCUMENT_TOKENS = (270, 0.5, 60, 900)
_QUESTION_TOKENS = (95, 0.6, 25, 1200)
_ACCURACY = 0.6


class Text(NamedTuple):
    """Tokens of one document, or of a prefix, and their experts."""

    token_id_T: np.ndarray
    ids_TB: np.ndarray


def write_synthetic(
    path: str | Path,
    tokens: int,
    *,
    shape: str = "v3",
    kind: str = "distinct",
    num_subjects: int = NUM_SUBJECTS,
    seed: int = 0,
) -> int:
    """Write a trace of at least `tokens` tokens, evenly by subject; return how many it has."""
    router, rng = Router(SHAPES[shape], seed), np.random.default_rng([seed, 1])
    layers = SHAPES[shape].layers
    correct: dict[tuple[str, int], bool] = {}
    run = {
        "model": f"synthetic {shape}, {kind}",
        "model_facts": {"num_moe_layers": len(layers), "top_k": layers[0].top_k},
        "slot_order": "router_rank",
    }
    with TraceWriter(path, layers=layers, run=run) as writer:
        for subject in range(num_subjects):
            share = -(-tokens // num_subjects)
            for prefix_end, new_from, text in _prompts(router, rng, subject, share, kind):
                num_tokens, doc_id = len(text.ids_TB), len(correct)
                correct["synthetic", doc_id] = bool(rng.random() < _ACCURACY)
                sequence = Sequence(
                    sequence_id=writer.next_sequence_id(),
                    num_tokens=num_tokens,
                    task="synthetic",
                    subject=f"subject {subject:02d}",
                    area=f"area {subject % 4}",
                    doc_id=doc_id,
                    prefix_end=prefix_end,
                    question_end=num_tokens - 2,
                    cue_end=num_tokens - 1,
                    new_from=new_from,
                )
                writer.write(sequence, text.ids_TB, token_id_T=text.token_id_T)
        writer.close(correct=correct)
    return writer.stats.tokens


def _prompts(
    router: Router, rng: np.random.Generator, subject: int, tokens: int, kind: str
) -> Iterator[tuple[int, int, Text]]:
    """The prompts of a subject: end of the prefix, first token of a new context, and text."""
    if kind == "distinct":
        lengths_D = _lengths(rng, tokens, 0, *_DOCUMENT_TOKENS)
        yield from ((0, 0, text) for text in _texts(router, rng, subject, lengths_D))
        return
    prefix_tokens = int(rng.integers(*_PREFIX_TOKENS, endpoint=True))
    (prefix,) = _texts(router, rng, subject, np.array([prefix_tokens]))
    lengths_D = _lengths(rng, tokens, prefix_tokens, *_QUESTION_TOKENS)
    new_from = 0
    for question in _texts(router, rng, subject, lengths_D):
        text = Text._make(map(np.concatenate, zip(prefix, question, strict=True)))
        yield prefix_tokens, new_from, text
        new_from = prefix_tokens


def _lengths(
    rng: np.random.Generator,
    tokens: int,
    extra: int,
    median: int,
    sigma: float,
    least: int,
    most: int,
) -> np.ndarray:
    """As many ragged lengths as it takes to reach a number of tokens, with `extra` for each."""
    number = tokens // (extra + least) + 1
    lengths_D = np.clip(rng.lognormal(np.log(median), sigma, number), least, most).astype(np.int64)
    return lengths_D[: 1 + np.searchsorted((lengths_D + extra).cumsum(), tokens)]


def _texts(
    router: Router, rng: np.random.Generator, subject: int, lengths_D: np.ndarray
) -> Iterator[Text]:
    """Route new text of these lengths, a batch of documents at a time."""
    zipf = np.arange(1, _VOCABULARY + 1) ** -_ZIPF_EXPONENT
    up_to = zipf.cumsum() / zipf.sum()
    batch_D = lengths_D.cumsum() // _BATCH_TOKENS
    for lengths in np.split(lengths_D, np.flatnonzero(np.diff(batch_D)) + 1):
        token_id_T = np.searchsorted(up_to, rng.random(lengths.sum())).astype(np.int32)
        ids_TB = router.route(token_id_T, lengths, subject)
        ends = lengths.cumsum()[:-1]
        yield from map(Text, np.split(token_id_T, ends), np.split(ids_TB, ends))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path, nargs="?", help="Where to write; default: time it only")
    parser.add_argument("--shape", choices=SHAPES, default="v3")
    parser.add_argument("--kind", choices=KINDS, default="distinct")
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--brief", action="store_true", help="Few tokens, to see that it runs.")
    arguments = parser.parse_args()
    tokens = 50_000 if arguments.brief else arguments.tokens
    with tempfile.TemporaryDirectory() as folder:
        path, start = arguments.path or Path(folder) / "trace", time.perf_counter()
        num_tokens = write_synthetic(path, tokens, shape=arguments.shape, kind=arguments.kind)
        seconds = time.perf_counter() - start
        size = sum(part.stat().st_size for part in (path / "routing").glob("*.parquet"))
    selections = num_tokens * SHAPES[arguments.shape].num_layers * SHAPES[arguments.shape].top_k
    print(f"{arguments.shape}, {arguments.kind}: {num_tokens:,} tokens in {seconds:.1f} s")
    print(f"{size / selections:.3f} bytes per selection")


if __name__ == "__main__":
    main()
