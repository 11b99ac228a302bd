"""The forward passes of one generated batch, put together again sequence by sequence.

Shape suffixes: B batch, P padded prompt, T tokens of one sequence, S steps.
"""

from __future__ import annotations

import numpy as np

from moe_probe.errors import CaptureError
from moe_probe.hooks.step_buffer import StepRows


class GenerationBatch:
    """Collects a prefill step of B x P tokens and decode steps of B tokens.

    Args:
        mask_BP: Which prompt positions are real; prompts are padded on the left.
    """

    def __init__(self, mask_BP: np.ndarray) -> None:
        self._mask_BP = mask_BP
        self._steps: list[StepRows] = []

    def add(self, step: StepRows) -> None:
        """Take in the next forward pass.

        Raises:
            CaptureError: it is neither the prefill of all prompts nor one token of each.
        """
        batch, padded = self._mask_BP.shape
        expected = batch if self._steps else batch * padded
        if step.num_tokens != expected:
            raise CaptureError(
                f"Generation ran {step.num_tokens} tokens in a step where {expected} were expected: "
                "beam search, assisted generation and generation without a cache cannot be "
                "recorded. Choose sampling or greedy decoding."
            )
        self._steps.append(step)

    @property
    def num_decoded(self) -> int:
        """Decode steps, each of which fed one generated token of every sequence."""
        return max(len(self._steps) - 1, 0)

    def rows(self, index: int, num_generated: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Join one sequence's prompt rows and its first `num_generated` decode rows."""
        padded = self._mask_BP.shape[1]
        ids, weights, _ = self._steps[0].wait()
        prompt = slice(index * padded, (index + 1) * padded)
        ids_parts = [ids[prompt][self._mask_BP[index]]]
        weight_parts = [] if weights is None else [weights[prompt][self._mask_BP[index]]]
        for step in self._steps[1 : num_generated + 1]:
            ids, weights, _ = step.wait()
            ids_parts.append(ids[index : index + 1])
            if weights is not None:
                weight_parts.append(weights[index : index + 1])
        return (
            np.concatenate(ids_parts),
            np.concatenate(weight_parts) if weight_parts else None,
        )
