"""What a run needs, computed before anything large is allocated."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from moe_probe import memory
from moe_probe.errors import MoeProbeError
from moe_probe.memory import gib
from moe_probe.trace.schema import Capture, LayerSpec

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig

ALLOWANCE = 0.10
"""Share added to the weights for activations, logits and the allocator's slack."""

# Bits per weight of the quantisations whose configuration does not state them. mxfp4 has an
# 8-bit scale per 32 weights.
_QUANTISED_BITS = {"fp8": 8.0, "fbgemm_fp8": 8.0, "mxfp4": 4.25}

# Bytes measured with zstd-1 on traces of real models: 0.94 per selection among 256 experts, 0.83
# among 128, 0.38 among 8 (the entropy of an even choice, at most 0.95 of the raw id), 1.6 per
# float16 weight, and about 4 per token for its id and position.
_PACKED = 0.95
_WEIGHT_BYTES = 1.6
_TOKEN_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class MemoryNeed:
    """Memory to run a model, with what it was computed from."""

    num_parameters: int
    """Parameters of the model, tied ones once."""
    bytes_per_parameter: float
    """By data type, or by the quantisation of the checkpoint."""
    dtype: str
    """The data type or quantisation behind that figure."""

    @property
    def num_bytes(self) -> int:
        """Weights and the allowance, in bytes."""
        return math.ceil(self.num_parameters * self.bytes_per_parameter * (1 + ALLOWANCE))

    def __str__(self) -> str:
        weights = self.num_parameters * self.bytes_per_parameter
        return (
            f"{_count(self.num_parameters)} parameters x {self.bytes_per_parameter:g} bytes "
            f"({self.dtype}) = {gib(weights)} + {ALLOWANCE:.0%} = {gib(self.num_bytes)}"
        )


def estimate_memory(config: PreTrainedConfig, dtype: str | torch.dtype = "auto") -> MemoryNeed:
    """Return what a model of this configuration needs, without allocating it.

    `dtype` is a torch type or its name; "auto" takes the checkpoint's.
    """
    import torch
    from transformers import AutoModelForCausalLM

    resolved = (config.dtype or torch.float32) if dtype == "auto" else dtype
    if isinstance(resolved, str):
        resolved = getattr(torch, resolved)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    quantised = _quantised(config)
    name, size = quantised or (str(resolved).removeprefix("torch."), resolved.itemsize)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    return MemoryNeed(num_parameters=num_parameters, bytes_per_parameter=size, dtype=name)


def available_memory(device: str, *, all_devices: bool = False) -> int:
    """Return the bytes a model can still take on a device.

    For "cuda", what the driver reports free, of every GPU with `all_devices`; otherwise what this
    process may take of the machine's memory.
    """
    if not device.startswith("cuda"):
        return memory.available_memory()
    import torch

    devices: Iterable[Any] = range(torch.cuda.device_count()) if all_devices else [device]
    return sum(int(torch.cuda.mem_get_info(each)[0]) for each in devices)


def check_fits(need: MemoryNeed, available: int, *, device: str) -> None:
    """Raise MoeProbeError, with the arithmetic, where a model needs more than is available."""
    if need.num_bytes <= available:
        return
    advice = "Choose a smaller model"
    if need.bytes_per_parameter > 2:
        advice += " or --dtype bfloat16"
    if device.startswith("cuda"):
        advice += ", or several GPUs with --model-args parallelize=True"
    raise MoeProbeError(
        f"The model needs {need}, but {device} has {gib(available)} free. {advice}."
    )


def estimate_trace_bytes(layers: Iterable[LayerSpec], tokens: int, capture: Capture) -> int:
    """Return about how large the per-token rows of a trace become; 0 at level `counts`."""
    if capture is Capture.COUNTS:
        return 0
    per_token = float(_TOKEN_BYTES)
    for layer in layers:
        entropy = math.log2(max(layer.num_experts, 2)) / 8
        selection = min(1.05 * entropy, _PACKED * layer.itemsize)
        weight = _WEIGHT_BYTES if capture is Capture.WEIGHTS else 0.0
        per_token += layer.top_k * (selection + weight)
    return math.ceil(tokens * per_token)


def _quantised(config: PreTrainedConfig) -> tuple[str, float] | None:
    settings = getattr(config, "quantization_config", None)
    if settings is None:
        return None
    if not isinstance(settings, dict):
        settings = settings.to_dict()
    method = str(settings.get("quant_method", "quantised"))
    bits = _QUANTISED_BITS.get(method) or settings.get("bits")
    if bits is None and settings.get("load_in_4bit"):
        bits = 4
    return (method, float(bits or 8) / 8)


def _count(number: int) -> str:
    return f"{number / 1e9:.1f}B" if number >= 1e8 else f"{number / 1e6:.1f}M"
