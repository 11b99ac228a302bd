from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, DeepseekV3Config, MixtralConfig, Qwen3MoeConfig

from moe_probe.errors import MoeProbeError
from moe_probe.evaluation.sizing import (
    MemoryNeed,
    check_fits,
    estimate_memory,
    estimate_trace_bytes,
)
from moe_probe.trace.schema import Capture, LayerSpec

SMALL = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
CONFIGS = [
    MixtralConfig(**SMALL, num_local_experts=4),
    Qwen3MoeConfig(
        **SMALL, num_experts=6, moe_intermediate_size=16, head_dim=16, tie_word_embeddings=True
    ),
    DeepseekV3Config(
        **SMALL,
        moe_intermediate_size=16,
        n_routed_experts=8,
        n_group=2,
        topk_group=1,
        num_experts_per_tok=2,
        first_k_dense_replace=1,
        q_lora_rank=16,
        kv_lora_rank=16,
    ),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.model_type)
def test_parameters_are_counted_exactly(config: Any) -> None:
    built = AutoModelForCausalLM.from_config(config)
    expected = sum(parameter.numel() for parameter in built.parameters())
    need = estimate_memory(config, "bfloat16")
    assert need.num_parameters == expected
    assert need.num_bytes == pytest.approx(expected * 2 * 1.1, abs=1)


def test_data_type_is_the_checkpoints_by_default() -> None:
    config = MixtralConfig(**SMALL, dtype="float16")
    assert estimate_memory(config).dtype == "float16"
    assert estimate_memory(config, torch.float32).bytes_per_parameter == 4


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"quant_method": "fp8"}, ("fp8", 1.0)),
        ({"quant_method": "mxfp4"}, ("mxfp4", 0.53125)),
        ({"quant_method": "gptq", "bits": 4}, ("gptq", 0.5)),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, ("bitsandbytes", 0.5)),
    ],
)
def test_quantised_checkpoints_need_less(
    settings: dict[str, Any], expected: tuple[str, float]
) -> None:
    config = MixtralConfig(**SMALL)
    config.quantization_config = settings
    need = estimate_memory(config, "bfloat16")
    assert (need.dtype, need.bytes_per_parameter) == expected


def test_refusal_shows_the_arithmetic() -> None:
    need = MemoryNeed(num_parameters=671_026_419_200, bytes_per_parameter=2, dtype="bfloat16")
    with pytest.raises(MoeProbeError) as caught:
        check_fits(need, 79 * 2**30, device="cuda:0")
    assert str(caught.value) == (
        "The model needs 671.0B parameters x 2 bytes (bfloat16) = 1249.9 GiB + 10% = 1374.9 GiB, "
        "but cuda:0 has 79.0 GiB free. "
        "Choose a smaller model, or several GPUs with --model-args parallelize=True."
    )
    check_fits(need, need.num_bytes, device="cuda:0")


def test_smaller_type_is_proposed_where_there_is_one() -> None:
    need = MemoryNeed(num_parameters=10**9, bytes_per_parameter=4, dtype="float32")
    with pytest.raises(MoeProbeError, match=r"smaller model or --dtype bfloat16\.$"):
        check_fits(need, 2**30, device="cpu")


@pytest.mark.parametrize(
    ("num_experts", "top_k", "measured"), [(256, 8, 0.943), (128, 8, 0.828), (8, 2, 0.379)]
)
def test_trace_size_is_near_what_was_measured(
    num_experts: int, top_k: int, measured: float
) -> None:
    layers = [LayerSpec(layer=i, num_experts=num_experts, top_k=top_k) for i in range(58)]
    selections = 1000 * 58 * top_k
    ids = estimate_trace_bytes(layers, 1000, Capture.IDS) / selections
    weights = estimate_trace_bytes(layers, 1000, Capture.WEIGHTS) / selections
    assert measured <= ids <= 1.15 * measured
    assert weights - ids == pytest.approx(1.6, abs=1e-4)
    assert estimate_trace_bytes(layers, 1000, Capture.COUNTS) == 0
