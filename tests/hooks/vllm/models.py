"""Models of nothing but MoE layers: vLLM's routers, without an engine around them.

Shape suffixes: T tokens, N experts.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from vllm.model_executor.layers.fused_moe.layer import MoERunner
from vllm.model_executor.layers.fused_moe.router.cpu_router import CPURouter

NUM_EXPERTS, TOP_K = 16, 4


class Runner(MoERunner):  # type: ignore[misc]
    """A MoE layer that routes, and has no experts."""

    def __init__(
        self,
        layer: int,
        router: Any,
        *,
        scale: float = 1.0,
        is_monolithic: bool = False,
        **moe_config: Any,
    ) -> None:
        nn.Module.__init__(self)
        self.layer_name = f"model.layers.{layer}.mlp.experts"
        self.router = router
        self.routed_scaling_factor = scale
        self.kernel_calls: list[dict[str, Any]] = []
        self.routed_experts = SimpleNamespace(
            quant_method=SimpleNamespace(is_monolithic=is_monolithic),
            forward_monolithic=self._kernel,
        )
        self.moe_config = SimpleNamespace(
            **{
                "num_logical_experts": NUM_EXPERTS,
                "experts_per_token": TOP_K,
                "dp_size": 1,
                "dp_rank": 0,
                "is_sequence_parallel": False,
                **moe_config,
            }
        )

    def _kernel(self, **arguments: Any) -> str:
        self.kernel_calls.append(arguments)
        return "output of the kernel"

    def route(self, logits_TN: torch.Tensor) -> Any:
        """Route as vLLM's runner does; the kernel's output, or weights and ids."""
        hidden = torch.zeros(len(logits_TN), 8)
        if self.routed_experts.quant_method.is_monolithic:
            return self.routed_experts.forward_monolithic(
                x=hidden, router_logits=logits_TN, input_ids=None
            )
        return self.router.select_experts(
            hidden_states=hidden,
            router_logits=logits_TN,
            topk_indices_dtype=None,
            input_ids=None,
        )


class Model(nn.Module):
    """Some decoder layers, of which the given ones are MoE layers."""

    def __init__(self, *runners: Runner) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.layers = nn.ModuleList(runners)


def cpu_router(**options: Any) -> CPURouter:
    return CPURouter(top_k=TOP_K, global_num_experts=NUM_EXPERTS, **options)


def config(num_layers: int = 2, **changes: Any) -> SimpleNamespace:
    """A configuration by which every layer is a MoE layer."""
    facts = {
        "model_type": "qwen3_moe",
        "num_hidden_layers": num_layers,
        "num_experts": NUM_EXPERTS,
        "num_experts_per_tok": TOP_K,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        **changes,
    }
    return SimpleNamespace(**facts)


def logits(num_tokens: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((num_tokens, NUM_EXPERTS), generator=generator)
