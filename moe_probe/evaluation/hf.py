"""lm-eval's Hugging Face model class, telling a recorder which request every row belongs to.

Scores are computed by lm-eval exactly as without recording; the overrides only look at what passes.

Shape suffixes: B batch, P padded prompt, T tokens.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import handle_stop_sequences
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from moe_probe.errors import CaptureError, UsageError
from moe_probe.evaluation.contexts import token_hash
from moe_probe.evaluation.generation import GenerationBatch
from moe_probe.evaluation.recorder import Recorder, Request, Row
from moe_probe.evaluation.requests import RequestReader, RowIndex
from moe_probe.evaluation.stretches import StretchFinder
from moe_probe.hooks.step_buffer import StepRows
from moe_probe.hooks.transformers import TransformersCapture


class _AnswerHook:
    """Stands where lm-eval reports each answer to its cache."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def add_partial(self, kind: str, arguments: Any, answer: Any) -> None:
        if kind == "loglikelihood":
            loglik, is_greedy = answer
            self._recorder.answer(
                _answer_key(kind, arguments),
                {"loglik": float(loglik), "is_greedy": bool(is_greedy)},
            )
        elif kind == "generate_until":
            self._recorder.answer(_answer_key(kind, arguments), {"response": str(answer)})


@register_model("moe-probe-hf")
class MoeProbeHF(HFLM):  # type: ignore[misc]
    """HFLM whose rows can be recorded; without `start_recording` it is HFLM."""

    _recorder: Recorder | None = None
    _capture: TransformersCapture | None = None

    def start_recording(
        self,
        recorder: Recorder,
        capture: TransformersCapture,
        *,
        tasks: Mapping[str, Any],
        facts: Mapping[str, Any],
    ) -> None:
        """Send every row from now on to a recorder.

        Args:
            recorder: Where rows and answers go.
            capture: An attached capture of this model.
            tasks: lm-eval's task objects by name; may fill up later.
            facts: Subject and area by task name.

        Raises:
            UsageError: the model runs in several processes, or is not a causal model.
        """
        if self.world_size > 1:
            raise UsageError(
                f"Recording in {self.world_size} data-parallel processes is not supported. Run one "
                "process, with --model-args parallelize=True to use several GPUs."
            )
        if self.backend != "causal":
            raise UsageError(f"Only causal models can be recorded, this one is {self.backend}.")
        self._recorder, self._capture = recorder, capture
        self._reader = RequestReader(StretchFinder(self.tok_encode), tasks, facts)
        self._instances: list[Any] = []
        self._rolling: dict[bytes, deque[Any]] = defaultdict(deque)
        self._index: RowIndex | None = None
        self._pending: tuple[StepRows, int] | None = None
        self._is_probing = False
        self._generation: GenerationBatch | None = None
        self._generating: dict[str, deque[Any]] = defaultdict(deque)
        self._batch_contexts: list[str] = []
        self.cache_hook = _AnswerHook(recorder)
        capture.on_step = self._on_step

    def stop_recording(self) -> None:
        """Take in the last rows and let go of the recorder."""
        self._drain()
        self.abandon_recording()

    def abandon_recording(self) -> None:
        """Let go of the recorder after a failure, without the rows still on their way."""
        if self._recorder is None or self._capture is None:
            return
        self._capture.on_step = None
        self._recorder.totals.layers = {
            str(layer): tokens for layer, tokens in self._capture.captured_tokens.items()
        }
        self._recorder = self._capture = None

    def set_cache_hook(self, cache_hook: Any) -> None:
        """Refuse lm-eval's answer cache: what it answers never runs through the model."""
        if self._recorder is not None and not isinstance(cache_hook, _AnswerHook):
            raise UsageError(
                "use_cache cannot be combined with recording: cached answers route no "
                "tokens. Leave use_cache out."
            )
        super().set_cache_hook(cache_hook)

    # --- log-likelihoods

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> Any:
        if self._recorder is None:
            return super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        self._instances = list(requests)
        try:
            # Our own progress line knows subjects and tokens; lm-eval's bars would fight with it.
            return super().loglikelihood(requests, disable_tqdm=True)
        finally:
            self._instances = []

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> Any:
        if self._recorder is None:
            return super().loglikelihood_rolling(requests, disable_tqdm=disable_tqdm)
        for instance in requests:
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(instance.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            for context, continuation in map(make_disjoint_window, windows):
                self._rolling[_token_bytes(context + continuation)].append(instance)
        return super().loglikelihood_rolling(requests, disable_tqdm=True)

    def _loglikelihood_tokens(
        self, requests: list[Any], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> Any:
        run = super()._loglikelihood_tokens
        if self._recorder is None:
            return run(requests, disable_tqdm=disable_tqdm, override_bs=override_bs)
        rows = self._plan(requests)
        answers = self._known_answers(requests, rows)
        open_requests = [r for r, answer in zip(requests, answers, strict=True) if answer is None]
        to_run = {id(rows[i]): rows[i] for i, answer in enumerate(answers) if answer is None}
        self._index = RowIndex(to_run.values())
        try:
            new = iter(run(open_requests, disable_tqdm=True, override_bs=override_bs))
            self._drain()
        finally:
            self._index = None
        return [next(new) if answer is None else answer for answer in answers]

    def _plan(self, requests: list[Any]) -> list[Row]:
        """Say for every request which row will answer it; note the tokens that makes."""
        assert self._recorder is not None
        rows: dict[Hashable, Row] = {}
        row_of_request = []
        for number, (strings, context, continuation) in enumerate(requests):
            whole = context + continuation
            fed = whole[-(self.max_length + 1) :][:-1]
            if strings is None:
                instance, key = self._rolling[_token_bytes(whole)].popleft(), None
            else:
                instance = self._instances[number]
                key = _answer_key("loglikelihood", strings)
            # As lm-eval groups: requests that differ in the last token only are one row.
            group: Hashable = tuple(whole[:-1]) if self.logits_cache else number
            if group in rows:
                rows[group].requests.append(self._reader.request(instance, key))
            else:
                truncated = len(whole) - 1 - len(fed)
                rows[group] = self._reader.row([(instance, key)], context, fed, truncated=truncated)
                self._recorder.expect(len(fed))
            row_of_request.append(rows[group])
        return row_of_request

    def _known_answers(self, requests: list[Any], rows: list[Row]) -> list[Any]:
        """Look up the answers an interrupted recording already has."""
        assert self._recorder is not None
        prior = self._recorder.prior
        answers: list[Any] = [None] * len(requests)
        if prior is None:
            return answers
        complete: dict[int, dict[Request, Any]] = {}
        for row in {id(row): row for row in rows}.values():
            prompt_hash = token_hash(row.tokens_T)
            known = {request: prior.answer(request, prompt_hash) for request in row.requests}
            # A row runs again unless every answer it gives is there.
            if all(answer is not None for answer in known.values()):
                complete[id(row)] = known
                self._recorder.note_known(row.tokens_T)
        for number, (strings, _, _) in enumerate(requests):
            if strings is not None and id(rows[number]) in complete:
                request = self._reader.request(
                    self._instances[number], _answer_key("loglikelihood", strings)
                )
                answer = complete[id(rows[number])][request]
                answers[number] = (answer["loglik"], answer["is_greedy"])
        return answers

    def _detect_batch_size(self, requests: Any = None, pos: int = 0) -> int:
        self._is_probing = True
        try:
            return int(super()._detect_batch_size(requests, pos))
        finally:
            self._is_probing = False

    def _model_call(self, inps: Any, attn_mask: Any = None, labels: Any = None) -> Any:
        # Known before the forward pass, since its hook fires inside.
        self._batch_size_of_step = len(inps)
        return super()._model_call(inps, attn_mask, labels)

    # --- generation

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> Any:
        if self._recorder is None:
            return super().generate_until(requests, disable_tqdm=disable_tqdm)
        prior = self._recorder.prior
        answers: list[Any] = [None] * len(requests)
        if prior is not None:
            answers = [self._known_response(prior, instance) for instance in requests]
        for instance, answer in zip(requests, answers, strict=True):
            if answer is None:
                self._generating[instance.args[0]].append(instance)
        todo = [r for r, answer in zip(requests, answers, strict=True) if answer is None]
        new = iter(super().generate_until(todo, disable_tqdm=True) if todo else [])
        return [next(new) if answer is None else answer for answer in answers]

    def _known_response(self, prior: Any, instance: Any) -> str | None:
        key = _answer_key("generate_until", instance.args)
        request = self._reader.request(instance, key)
        room = self.max_length - int(instance.args[1].get("max_gen_toks", self.max_gen_toks))
        tokens_T = np.asarray(self.tok_encode(instance.args[0])[-room:], np.int32)
        prompt_hash = token_hash(tokens_T)
        answer = prior.answer(request, prompt_hash)
        if answer is None:
            return None
        assert self._recorder is not None
        self._recorder.expect(prior.num_tokens(request, prompt_hash))
        self._recorder.note_known(tokens_T)
        return str(answer["response"])

    def tok_batch_encode(self, strings: list[str], *args: Any, **kwargs: Any) -> Any:
        self._batch_contexts = list(strings)
        return super().tok_batch_encode(strings, *args, **kwargs)

    def _model_generate(self, context: Any, max_length: int, stop: list[str], **kwargs: Any) -> Any:
        run = super()._model_generate
        if self._recorder is None:
            return run(context, max_length, stop, **kwargs)
        mask = kwargs["attention_mask"].cpu().numpy().astype(bool)
        self._generation = GenerationBatch(mask)
        try:
            out = run(context, max_length, stop, **kwargs)
            self._record_generation(self._generation, out.cpu().numpy(), mask, stop)
        finally:
            self._generation = None
        return out

    def _record_generation(
        self, batch: GenerationBatch, out: np.ndarray, mask_BP: np.ndarray, stop: list[str]
    ) -> None:
        assert self._recorder is not None
        recorder, num_prompt = self._recorder, mask_BP.shape[1]
        ends = {self.eot_token_id, self.tokenizer.pad_token_id}
        stops = handle_stop_sequences(list(stop), eos=self.tok_decode(self.eot_token_id))
        for index, string in enumerate(self._batch_contexts):
            instance = self._generating[string].popleft()
            prompt = out[index, :num_prompt][mask_BP[index]].tolist()
            generated = out[index, num_prompt:].tolist()
            num_fed = min(self._num_before_stop(generated, ends, stops), batch.num_decoded)
            key = _answer_key("generate_until", instance.args)
            encoded = self.tok_encode(string)
            row = self._reader.row(
                [(instance, key)], encoded, prompt, truncated=max(0, len(encoded) - len(prompt))
            )
            recorder.expect(len(prompt))
            ids_TB, weights_TS = batch.rows(index, num_fed)
            recorder.record(row, ids_TB, weights_TS, generated_T=np.asarray(generated[:num_fed]))
            recorder.totals.after_stop_tokens += batch.num_decoded - num_fed
        recorder.totals.padding_tokens += int((~mask_BP).sum())

    def _num_before_stop(self, generated: list[int], ends: set[Any], stops: list[str]) -> int:
        """Count generated tokens that would be fed back if the sequence ran alone."""
        length = next((i for i, token in enumerate(generated) if token in ends), len(generated))

        def stopped(count: int) -> bool:
            text = self.tok_decode(generated[:count])
            return any(stop and stop in text for stop in stops)

        if not stopped(length):
            return length
        low, high = 1, length
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if stopped(middle) else (middle + 1, high)
        return low - 1

    # --- rows

    def _on_step(self, step: StepRows) -> None:
        assert self._recorder is not None
        self._recorder.totals.computed_tokens += step.num_tokens
        if self._generation is not None:
            self._generation.add(step)
        elif self._is_probing or self._index is None:
            self._recorder.totals.probe_tokens += step.num_tokens
        else:
            # The step before this one has long reached the host: no synchronisation is added.
            self._drain()
            self._pending = (step, self._batch_size_of_step)

    def _drain(self) -> None:
        if self._pending is None:
            return
        (step, batch_size), self._pending = self._pending, None
        ids_TB, weights_TS, token_id_T = step.wait()
        if token_id_T is None or self._index is None or self._recorder is None:
            raise CaptureError("A forward pass was fed embeddings, so its rows have no identity.")
        per_row = len(ids_TB) // batch_size
        for index in range(batch_size):
            start, stop = index * per_row, (index + 1) * per_row
            row = self._index.take(token_id_T[start:stop])
            if row is None:
                self._recorder.totals.unmatched_tokens += per_row
                continue
            end = start + len(row.tokens_T)
            weights = None if weights_TS is None else weights_TS[start:end]
            self._recorder.record(row, ids_TB[start:end], weights)
            self._recorder.totals.padding_tokens += stop - end


def _answer_key(kind: str, arguments: Any) -> Hashable:
    return (kind, arguments[0], str(arguments[1]))


def _token_bytes(tokens: list[int]) -> bytes:
    return np.asarray(tokens, np.int32).tobytes()
