"""lm-eval's Hugging Face model class, telling a recorder which request every row belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import handle_stop_sequences

from moe_probe.errors import CaptureError, UsageError
from moe_probe.evaluation.engines.hf_generation import GenerationBatch, GenerationRecorder
from moe_probe.evaluation.engines.model import RecordedModel
from moe_probe.evaluation.likelihoods import Feeding, LikelihoodPlanner
from moe_probe.evaluation.requests import RequestReader, RowIndex
from moe_probe.evaluation.stretches import StretchFinder
from moe_probe.hooks.step_buffer import StepRows
from moe_probe.hooks.transformers import TransformersCapture
from moe_probe.recording.recorder import Recorder
from moe_probe.recording.rows import Decisions, Row


@register_model("moe-probe-hf")
class MoeProbeHF(RecordedModel, HFLM):  # type: ignore[misc]
    """HFLM whose rows can be recorded; without `start_recording` it is HFLM."""

    _recorder: Recorder | None = None
    _capture: TransformersCapture | None = None
    _index: RowIndex | None = None
    _batch: GenerationBatch | None = None
    _pending: tuple[StepRows, int, int] | None = None
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
        feeding = Feeding(self.max_length, feeds_last=False)
        self.begin(recorder, LikelihoodPlanner(reader, feeding=feeding, groups=self.logits_cache))
        self._generations = GenerationRecorder(
            recorder, reader, encode=self.tok_encode, decode=self.tok_decode
        )
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
        self._books = self._recorder = self._capture = self._pending = None

    def _run_rows(self, rows: list[Row], run: Any) -> Any:
        self._index = RowIndex(rows)
        try:
            answers = run()
            self._drain()
        finally:
            self._index = None
        return answers

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

    def _known_response(self, instance: Any) -> str | None:
        assert self._recorder is not None
        if self._recorder.prior is None:
            return None
        new_tokens = int(instance.args[1].get("max_gen_toks", self.max_gen_toks))
        return self._generations.known_response(
            self._recorder.prior, instance, room=self.max_length - new_tokens
        )

    def _expect_generation(self, instance: Any) -> None:
        self._generations.expect_instance(instance)

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
            self._batch.add(step, self._recorder.number_pass())
        elif self._is_probing or self._index is None:
            self._recorder.totals.probe_tokens += step.num_tokens
        else:
            # The step before this one has long reached the host: no synchronisation is added.
            self._drain()
            self._pending = (step, self._num_rows, self._recorder.number_pass())

    def _drain(self) -> None:
        """Record the rows of the step that is pending."""
        if self._pending is None or self._index is None or self._recorder is None:
            return
        (step, num_rows, number), self._pending = self._pending, None
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
            passes_T = np.full(end - start, number, np.int32)
            decisions = Decisions(ids_TB[start:end], weights, forward_pass_T=passes_T)
            self._recorder.record(row, decisions)
            self._recorder.totals.padding_tokens += per_row - len(row.tokens_T)
