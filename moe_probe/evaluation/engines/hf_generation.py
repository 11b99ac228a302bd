"""Generated text: which forward passes belong to which sequence, and where each one really ended.

Shape suffixes: B batch, P padded prompt, N new tokens, T tokens of one sequence.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable
from typing import Any

import numpy as np

from moe_probe.errors import CaptureError
from moe_probe.evaluation.requests import RequestReader, answer_key
from moe_probe.hooks.step_buffer import StepRows
from moe_probe.recording.contexts import token_hash
from moe_probe.recording.prior import PriorRun
from moe_probe.recording.recorder import Recorder
from moe_probe.recording.rows import Decisions


class GenerationBatch:
    """Collects a prefill step of B x P tokens and decode steps of B tokens.

    Args:
        mask_BP: Which prompt positions are real; prompts are padded on the left.
    """

    def __init__(self, mask_BP: np.ndarray) -> None:
        self.mask_BP = mask_BP
        self._steps: list[StepRows] = []
        self._passes: list[int] = []

    def add(self, step: StepRows, forward_pass: int) -> None:
        """Take in the next forward pass, and its number.

        Raises:
            CaptureError: it is neither the prefill of all prompts nor one token of each.
        """
        batch, padded = self.mask_BP.shape
        expected = batch if self._steps else batch * padded
        if step.num_tokens != expected:
            raise CaptureError(
                f"Generation ran {step.num_tokens} tokens in a step where {expected} were "
                "expected: beam search, assisted generation and generation without a cache "
                "cannot be recorded. Choose sampling or greedy decoding."
            )
        self._steps.append(step)
        self._passes.append(forward_pass)

    @property
    def num_decoded(self) -> int:
        """Decode steps, each of which fed one generated token of every sequence."""
        return max(len(self._steps) - 1, 0)

    def decisions(self, index: int, num_generated: int) -> Decisions:
        """Join one sequence's prompt rows and its first `num_generated` decode rows."""
        padded = self.mask_BP.shape[1]
        first = self._steps[0].wait()
        ids, weights = first.ids_TB, first.weights_TS
        prompt = slice(index * padded, (index + 1) * padded)
        ids_parts = [ids[prompt][self.mask_BP[index]]]
        weight_parts = [] if weights is None else [weights[prompt][self.mask_BP[index]]]
        for step in self._steps[1 : num_generated + 1]:
            rows = step.wait()
            ids_parts.append(rows.ids_TB[index : index + 1])
            if rows.weights_TS is not None:
                weight_parts.append(rows.weights_TS[index : index + 1])
        lengths = [len(part) for part in ids_parts]
        return Decisions(
            np.concatenate(ids_parts),
            np.concatenate(weight_parts) if weight_parts else None,
            forward_pass_T=np.repeat(np.array(self._passes[: len(lengths)], np.int32), lengths),
        )


class GenerationRecorder:
    """Matches generated batches with the Instances they answer.

    Args:
        recorder: Where the rows go.
        reader: Describes Instances.
        encode: Text to token ids, as the evaluation encodes a context.
        decode: Token ids to text, as the evaluation decodes an answer.
    """

    def __init__(
        self,
        recorder: Recorder,
        reader: RequestReader,
        *,
        encode: Callable[[str], list[int]],
        decode: Callable[[list[int]], str],
    ) -> None:
        self.contexts: list[str] = []
        """The prompts of the batch that is generated next, in row order."""
        self._recorder, self._reader = recorder, reader
        self._encode, self._decode = encode, decode
        self._instances: dict[str, deque[Any]] = defaultdict(deque)

    def expect_instance(self, instance: Any) -> None:
        """Note an Instance that is going to be generated."""
        self._instances[instance.args[0]].append(instance)

    def known_response(self, prior: PriorRun, instance: Any, *, room: int) -> str | None:
        """Look up the text an interrupted recording has, for a prompt of at most `room` tokens."""
        request = self._reader.request(instance, answer_key("generate_until", instance.args))
        tokens_T = np.asarray(self._encode(instance.args[0])[-room:], np.int32)
        prompt_hash = token_hash(tokens_T)
        answer = prior.answer(request, prompt_hash)
        if answer is None:
            return None
        num_tokens = prior.num_tokens(request, prompt_hash)
        self._recorder.note_known(request, tokens_T, num_tokens)
        return str(answer["response"])

    def record(
        self, batch: GenerationBatch, out_BN: np.ndarray, *, ends: set[Any], stops: list[str]
    ) -> None:
        """Record a finished batch.

        Args:
            batch: Its forward passes.
            out_BN: Prompt and generated token ids, as `generate` returns them.
            ends: Token ids that end a sequence.
            stops: Strings that end a sequence.
        """
        recorder, num_prompt = self._recorder, batch.mask_BP.shape[1]
        for index, context in enumerate(self.contexts):
            instance = self._instances[context].popleft()
            prompt = out_BN[index, :num_prompt][batch.mask_BP[index]].tolist()
            generated = out_BN[index, num_prompt:].tolist()
            num_fed = min(self._num_before_stop(generated, ends, stops), batch.num_decoded)
            encoded = self._encode(context)
            key = answer_key("generate_until", instance.args)
            truncated = max(0, len(encoded) - len(prompt))
            row = self._reader.row(instance, key, encoded, prompt, truncated=truncated)
            recorder.expect(len(prompt))
            generated_T = np.asarray(generated[:num_fed], np.int32)
            recorder.record(row, batch.decisions(index, num_fed), generated_T=generated_T)
            recorder.totals.after_stop_tokens += batch.num_decoded - num_fed
        recorder.totals.padding_tokens += int((~batch.mask_BP).sum())

    def _num_before_stop(self, generated: list[int], ends: set[Any], stops: list[str]) -> int:
        """Count generated tokens that would be fed back if the sequence ran alone."""
        length = next((i for i, token in enumerate(generated) if token in ends), len(generated))

        def stopped(count: int) -> bool:
            text = self._decode(generated[:count])
            return any(stop and stop in text for stop in stops)

        if not stopped(length):
            return length
        low, high = 1, length
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if stopped(middle) else (middle + 1, high)
        return low - 1
