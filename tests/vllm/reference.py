"""What transformers decides in float32, one sequence at a time, and a comparison with it.

Shape suffixes: T tokens, K slots, N experts, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from moe_probe.hooks.transformers.detector import Site, find_sites
from moe_probe.hooks.transformers.probing import hooked


@dataclass
class Routing:
    """The decisions of one sequence by layer, slots in descending order of weight."""

    ids: dict[int, np.ndarray] = field(default_factory=dict)
    """[T, K] expert ids."""
    weights: dict[int, np.ndarray] = field(default_factory=dict)
    """[T, K] float32 gate weights, as they multiply the experts' outputs."""
    logits: dict[int, np.ndarray] = field(default_factory=dict)
    """[T, N] float32 router logits, before any bias or activation."""

    def after(self, first: int) -> Routing:
        """Leave out the tokens before a position."""
        parts = (self.ids, self.weights, self.logits)
        return Routing(*({n: rows[first:] for n, rows in part.items()} for part in parts))


class Reference:
    """A checkpoint in transformers."""

    def __init__(self, folder: Path) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self._sites = find_sites(self.model)

    @torch.no_grad()
    def routing(self, sequences: Sequence[Sequence[int]]) -> list[Routing]:
        """Return what each sequence's tokens are routed to."""
        found = []
        for sequence in sequences:
            routing = Routing()
            with ExitStack() as stack:
                for site in self._sites:
                    stack.enter_context(hooked(site, _decision(routing, site)))
                    router = self._router(site)
                    handle = router.register_forward_hook(_logits(routing, site.layer))
                    stack.callback(handle.remove)
                self.model(torch.tensor([sequence]))
            found.append(routing)
        return found

    @torch.no_grad()
    def greedy(self, prompt: Sequence[int], num_tokens: int) -> list[int]:
        """Return the most likely continuation, whatever ends a text."""
        output = self.model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            max_new_tokens=num_tokens,
            min_new_tokens=num_tokens,
            eos_token_id=None,
        )
        return list(output[0, len(prompt) :].tolist())

    @torch.no_grad()
    def logprobs(self, sequence: Sequence[int]) -> np.ndarray:
        """Return [T - 1] the log-probability of every token after the first."""
        logits_TV = self.model(torch.tensor([sequence])).logits[0]
        scores_TV = logits_TV.log_softmax(-1)
        following = torch.tensor(sequence[1:])[:, None]
        logprobs: np.ndarray = scores_TV[:-1].gather(-1, following)[:, 0].numpy()
        return logprobs

    def _router(self, site: Site) -> nn.Module:
        block = self.model.get_submodule(site.path.rpartition(".")[0])
        router: nn.Module = block.gate if hasattr(block, "gate") else block.router
        return router


def assert_same_routing(
    expected: Routing,
    positions_T: Sequence[int] | np.ndarray,
    ids: Mapping[int, np.ndarray],
    weights: Mapping[int, np.ndarray] | None = None,
    *,
    atol: float = 1e-4,
) -> None:
    """Compare recorded rows of one sequence with the reference.

    Every position must be there once, in any order, and every layer; a row must choose the same
    experts, in any order, at the same weights.

    Args:
        expected: The reference.
        positions_T: Each recorded row's position in the sequence.
        ids: [T, K] recorded ids by layer.
        weights: [T, K] recorded weights by layer, if any were recorded.
        atol: Largest difference of a weight; float16 needs about 1e-3 per unit of weight.
    """
    order_T = np.argsort(positions_T)
    num_tokens = len(next(iter(expected.ids.values())))
    np.testing.assert_array_equal(np.asarray(positions_T)[order_T], np.arange(num_tokens))
    assert sorted(ids) == sorted(expected.ids), "other layers than the reference has"
    for layer, expected_TK in expected.ids.items():
        found_TK = np.asarray(ids[layer]).astype(np.int64)[order_T]
        by_id_TK = found_TK.argsort(axis=1)
        expected_by_id_TK = expected_TK.argsort(axis=1)
        np.testing.assert_array_equal(
            np.take_along_axis(found_TK, by_id_TK, 1),
            np.take_along_axis(expected_TK, expected_by_id_TK, 1),
            err_msg=f"experts of layer {layer}",
        )
        if weights is None:
            continue
        recorded_TK = np.asarray(weights[layer]).astype(np.float32)[order_T]
        np.testing.assert_allclose(
            np.take_along_axis(recorded_TK, by_id_TK, 1),
            np.take_along_axis(expected.weights[layer], expected_by_id_TK, 1),
            rtol=0,
            atol=atol,
            err_msg=f"weights of layer {layer}",
        )


def _decision(routing: Routing, site: Site) -> Callable[..., None]:
    def hook(module: nn.Module, args: Any, kwargs: Any, output: Any = None) -> None:
        ids_TK, weights_TK = site.read(module, args, kwargs, output)
        weights_TK, order_TK = weights_TK.float().sort(dim=-1, descending=True, stable=True)
        routing.ids[site.layer] = ids_TK.gather(-1, order_TK).numpy()
        routing.weights[site.layer] = weights_TK.numpy()

    return hook


def _logits(routing: Routing, layer: int) -> Callable[..., None]:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        # All architectures of the zoo return logits, weights, ids.
        routing.logits[layer] = output[0].float().numpy()

    return hook
