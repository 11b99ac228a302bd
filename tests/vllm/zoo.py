"""Tiny random fp32 checkpoints that both transformers and vLLM's CPU engine can run.

The architectures are those of tests/hooks/zoo.py, in shapes vLLM's CPU kernels accept: heads of a
multiple of 32, and for latent attention exactly 512 + 64. Tokens are bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from tests.hooks.zoo import build_anew
from tests.toy import save_with_bytes

BYTES = {"vocab_size": 258, "pad_token_id": 256, "eos_token_id": 257, "bos_token_id": None}
_SHAPE = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 32}
_LATENT = {
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 32,
    "v_head_dim": 32,
    "head_dim": 64,
}
# vLLM's rotary kernel for the CPU is wrong for queries that are not contiguous, as these are.
_NO_KERNELS = {"compilation_config": {"custom_ops": ["none"]}}


@dataclass(frozen=True)
class Entry:
    """One model: how to make its folder, and what vLLM and a comparison need to know about it."""

    name: str
    folder: Callable[[Path], Path]
    """Save the checkpoint under a folder; return where it is."""
    layers: tuple[int, ...]
    """Its MoE layers."""
    num_experts: int
    top_k: int
    vocabulary: int
    """Token ids below this are real tokens."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """What a CPU engine must be given beside the defaults."""


def _tiny(
    name: str,
    layers: tuple[int, ...],
    changes: dict[str, Any] | None = None,
    arguments: dict[str, Any] | None = None,
) -> Entry:
    def save(parent: Path) -> Path:
        # Larger weights than usual: what a wrong token or expert changes is then well visible,
        # and scores of two experts are never as close as rounding.
        shape = {**BYTES, **_SHAPE, "initializer_range": 0.1, **(changes or {})}
        model = build_anew(name, router_scale=0.3, **shape)
        return save_with_bytes(model, parent / name)

    return Entry(name, save, layers, 16, 4, 256, arguments or {})


def _bundled(parent: Path) -> Path:
    return Path(str(files("moe_probe.bundled") / "tiny_moe"))


ZOO: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        _tiny("qwen3_moe", (0, 2, 3)),
        _tiny("mixtral", (0, 1, 2, 3)),
        _tiny("olmoe", (0, 1, 2, 3)),
        _tiny(
            "deepseek_v3",
            (1, 2, 3),
            {
                **_LATENT,
                "topk_method": "noaux_tc",
                "scoring_func": "sigmoid",
                "routed_scaling_factor": 2.5,
                "norm_topk_prob": True,
                "num_nextn_predict_layers": 0,
            },
            _NO_KERNELS,
        ),
        _tiny("gpt_oss", (0, 1, 2, 3)),
        Entry("tiny_moe", _bundled, (1, 2, 3, 4), 32, 4, 3840, _NO_KERNELS),
    )
}


def prompts_of(
    entry: Entry, lengths: tuple[int, ...] = (20, 41, 60), seed: int = 3
) -> list[list[int]]:
    """Return prompts of random tokens."""
    generator = torch.Generator().manual_seed(seed)
    # The first ids are special ones in the bundled model's vocabulary.
    return [torch.randint(3, entry.vocabulary, (n,), generator=generator).tolist() for n in lengths]
