"""lm-eval's Hugging Face model class, telling a recorder which request every row belongs to.

Scores are computed by lm-eval exactly as without recording; the overrides only look at what passes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import handle_stop_sequences

from moe_probe.errors import CaptureError, UsageError
from moe_probe.evaluation.generation import GenerationBatch, GenerationRecorder
from moe_probe.evaluation.likelihoods import Feeding, LikelihoodPlanner, known_answers, unique_rows
from moe_probe.evaluation.requests import RequestReader, RowIndex, answer_key
from moe_probe.evaluation.stretches import StretchFinder
from moe_probe.hooks.step_buffer import StepRows
from moe_probe.hooks.transformers import TransformersCapture
from moe_probe.recording.recorder import Recorder
from moe_probe.recording.rows import Decisions


class _AnswerHook:
    """Stands where lm-eval reports each answer to its cache."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def add_partial(self, kind: str, arguments: Any, answer: Any) -> None:
        if kind == "loglikelihood":
            facts: dict[str, Any] = {"loglik": float(answer[0]), "is_greedy": bool(answer[1])}
        elif kind == "generate_until":
            facts = {"response": str(answer)}
        else:
            return
        self._recorder.answer(answer_key(kind, arguments), facts)


@register_model("moe-probe-hf")
class MoeProbeHF(HFLM):  # type: ignore[misc]
    """HFLM whose rows can be recorded; without `start_recording` it is HFLM."""

    _recorder: Recorder | None = None
    _capture: TransformersCapture | None = None
    _index: RowIndex | None = None
    _batch: GenerationBatch | None = None
    _pending: tuple[StepRows, int] | None = None
    _num_rows = 0
    _is_probing = False

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
            tasks: lm-eval's task objects by name.
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
        reader = RequestReader(StretchFinder(self.tok_encode), tasks, facts)
        self._planner = LikelihoodPlanner(
            reader,
            feeding=Feeding(self.max_length, feeds_last=False),
            groups=self.logits_cache,
        )
        self._generations = GenerationRecorder(
            recorder, reader, encode=self.tok_encode, decode=self.tok_decode
        )
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
        self._recorder = self._capture = self._pending = None

    def set_cache_hook(self, cache_hook: Any) -> None:
        """Refuse lm-eval's answer cache: what it answers never runs through the model."""
        if self._recorder is not None:
            raise UsageError(
                "use_cache cannot be combined with recording: cached answers route no tokens. "
                "Leave use_cache out."
            )
        super().set_cache_hook(cache_hook)

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> Any:
        if self._recorder is not None:
            self._planner.expect_instances(requests)
            # Our own progress knows subjects and tokens; lm-eval's bars would fight with it.
            disable_tqdm = True
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> Any:
        if self._recorder is not None:
            for instance in requests:
                tokens = self.tok_encode(instance.args[0])
                self._planner.expect_windows(instance, tokens, self.prefix_token_id)
            disable_tqdm = True
        return super().loglikelihood_rolling(requests, disable_tqdm=disable_tqdm)

    def _loglikelihood_tokens(
        self, requests: list[Any], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> Any:
        run = super()._loglikelihood_tokens
        if self._recorder is None:
            return run(requests, disable_tqdm=disable_tqdm, override_bs=override_bs)
        planned = self._planner.plan(requests)
        answers = known_answers(planned, self._recorder.prior)
        to_run = [p for p, answer in zip(planned, answers, strict=True) if answer is None]
        rows = unique_rows(to_run)
        running = set(map(id, rows))
        for row in unique_rows(planned):
            if id(row) in running:
                self._recorder.expect(len(row.tokens_T))
            else:
                self._recorder.note_known(row.requests[0], row.tokens_T, len(row.tokens_T))
        self._index = RowIndex(rows)
        try:
            open_requests = [r for r, a in zip(requests, answers, strict=True) if a is None]
            new = iter(run(open_requests, disable_tqdm=True, override_bs=override_bs))
            self._drain()
        finally:
            self._index = None
        return [next(new) if answer is None else answer for answer in answers]

    def _detect_batch_size(self, requests: Any = None, pos: int = 0) -> int:
        self._is_probing = True
        try:
            return int(super()._detect_batch_size(requests, pos))
        finally:
            self._is_probing = False

    def _model_call(self, inps: Any, attn_mask: Any = None, labels: Any = None) -> Any:
        # Known before the forward pass, since its hook fires inside.
        self._num_rows = len(inps)
        return super()._model_call(inps, attn_mask, labels)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> Any:
        if self._recorder is None:
            return super().generate_until(requests, disable_tqdm=disable_tqdm)
        if self._recorder.prior is not None and any((r.repeats or 1) > 1 for r in requests):
            raise UsageError(
                "A task that generates several answers per document cannot be resumed: which one "
                "is missing cannot be told. Record it into a new --output."
            )
        answers = [self._known_response(instance) for instance in requests]
        todo = [r for r, answer in zip(requests, answers, strict=True) if answer is None]
        for instance in todo:
            self._generations.expect_instance(instance)
        new = iter(super().generate_until(todo, disable_tqdm=True) if todo else [])
        return [next(new) if answer is None else answer for answer in answers]

    def _known_response(self, instance: Any) -> str | None:
        assert self._recorder is not None
        if self._recorder.prior is None:
            return None
        new_tokens = int(instance.args[1].get("max_gen_toks", self.max_gen_toks))
        return self._generations.known_response(
            self._recorder.prior, instance, room=self.max_length - new_tokens
        )

    def tok_batch_encode(
        self,
        strings: list[str],
        padding_side: str = "left",
        left_truncate_len: int | None = None,
        truncation: bool = False,
    ) -> Any:
        if self._recorder is not None:
            self._generations.contexts = list(strings)
        return super().tok_batch_encode(strings, padding_side, left_truncate_len, truncation)

    def _model_generate(
        self, context: Any, max_length: int, stop: list[str], **generation_kwargs: Any
    ) -> Any:
        run = super()._model_generate
        if self._recorder is None:
            return run(context, max_length, stop, **generation_kwargs)
        self._batch = GenerationBatch(generation_kwargs["attention_mask"].cpu().numpy() > 0)
        try:
            out = run(context, max_length, stop, **generation_kwargs)
            end = self.tok_decode(self.eot_token_id)
            self._generations.record(
                self._batch,
                out.cpu().numpy(),
                ends={self.eot_token_id, self.tokenizer.pad_token_id},
                stops=handle_stop_sequences(list(stop), eos=end),
            )
        finally:
            self._batch = None
        return out

    def _on_step(self, step: StepRows) -> None:
        assert self._recorder is not None
        self._recorder.totals.computed_tokens += step.num_tokens
        if self._batch is not None:
            self._batch.add(step)
        elif self._is_probing or self._index is None:
            self._recorder.totals.probe_tokens += step.num_tokens
        else:
            # The step before this one has long reached the host: no synchronisation is added.
            self._drain()
            self._pending = (step, self._num_rows)

    def _drain(self) -> None:
        """Record the rows of the step that is pending."""
        if self._pending is None or self._index is None or self._recorder is None:
            return
        (step, num_rows), self._pending = self._pending, None
        ids_TB, weights_TS, _, token_id_T, *_ = step.wait()
        if token_id_T is None:
            raise CaptureError("A forward pass was fed embeddings, so its rows have no identity.")
        per_row = len(ids_TB) // num_rows
        for start in range(0, len(ids_TB), per_row):
            row = self._index.take(token_id_T[start : start + per_row])
            if row is None:
                self._recorder.totals.unmatched_tokens += per_row
                continue
            end = start + len(row.tokens_T)
            weights = None if weights_TS is None else weights_TS[start:end]
            self._recorder.record(row, Decisions(ids_TB[start:end], weights))
            self._recorder.totals.padding_tokens += per_row - len(row.tokens_T)
