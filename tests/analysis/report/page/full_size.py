"""A report in the shape of DeepSeek-V3 on MMLU: 57 subjects, 256 experts, counts of a long run.

Shape suffixes: L layers, T tokens, G strata, N experts of a layer.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from moe_probe.analysis.report.contents import Contents, gather
from moe_probe.analysis.results import TABLES
from moe_probe.analysis.settings import Settings
from moe_probe.trace import LayerSpec, TraceWriter, open_trace

SUBJECTS, LAYERS, EXPERTS, TOP_K = 57, 58, 256, 8
TOKENS = 14_000_000
"""Of MMLU with five examples, about; larger counts deflate less."""


def contents_of(folder: Path, layers: int) -> Contents:
    """Analyse a short trace and give it the counts of a long one."""
    rng = np.random.default_rng(layers)
    specs = [LayerSpec(layer=n, num_experts=EXPERTS, top_k=TOP_K) for n in range(layers)]
    with TraceWriter(
        folder, layers=specs, run={"model": "m", "slot_order": "router_rank"}
    ) as writer:
        for subject in range(SUBJECTS):
            load_N = rng.lognormal(0, 0.7, EXPERTS)
            for document in range(3):
                clock_LTN = rng.exponential(size=(layers, 60, EXPERTS)) / load_N
                writer.add(
                    list(np.argsort(clock_LTN, axis=2)[:, :, :TOP_K]),
                    token_ids=rng.integers(0, 30_000, 60),
                    subject=f"subject {subject:02d}",
                    area=f"area {subject % 4}",
                    doc_id=3 * subject + document,
                    new_from=0,
                    prefix_end=20,
                    question_end=56,
                    cue_end=58,
                    choice_end=60,
                )
    found = gather(open_trace(folder), Settings(shuffles=2, replicates=20, permutations=2))
    for name in TABLES:
        found.analysis.table(name)
    sums, times = found.analysis.sums, TOKENS // found.tokens
    for counts in {id(one): one for one in (sums.counts, *sums.by_rule.values())}.values():
        for arrays in counts.arrays.values():
            share_GN = rng.lognormal(0, 0.7, arrays["counts_GN"].shape) / EXPERTS / 2
            arrays["tokens_G"] = arrays["tokens_G"] * times
            arrays["counts_GN"] = rng.poisson(arrays["tokens_G"][:, None] * TOP_K * share_GN)
    return found
