"""The engines lm-eval can drive and whose routing can be recorded.

Each has a backend (`hf`, `vllm`, `server`), which loads and closes, and a model class of lm-eval
(`*_model`), which says what row every request is.
"""

from __future__ import annotations

from moe_probe.evaluation.engines.backend import Backend
from moe_probe.evaluation.plan import RecordOptions


def backend_of(options: RecordOptions) -> Backend:
    """The engine that the options name; its libraries are imported only now."""
    match options.backend:
        case "vllm":
            from moe_probe.evaluation.engines.vllm import VLLMBackend

            return VLLMBackend()
        case "server":
            from moe_probe.evaluation.engines.server import ServerBackend

            return ServerBackend()
        case _:
            from moe_probe.evaluation.engines.hf import HFBackend

            return HFBackend()
