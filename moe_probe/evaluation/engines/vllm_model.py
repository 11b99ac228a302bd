"""lm-eval's vLLM model class, telling the engine's recorder which request every row belongs to."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from lm_eval.api.registry import register_model
from lm_eval.models.utils import maybe_truncate
from lm_eval.models.vllm_causallms import VLLM

from moe_probe.errors import UsageError
from moe_probe.evaluation.engines.model import RecordedModel
from moe_probe.evaluation.engines.remote import EngineRecorder, TaggedRows
from moe_probe.evaluation.likelihoods import Feeding, LikelihoodPlanner
from moe_probe.evaluation.requests import RequestReader, answer_key
from moe_probe.evaluation.stretches import StretchFinder
from moe_probe.recording.contexts import token_hash
from moe_probe.recording.rows import Row
from moe_probe.recording.tags import TAG, describe


@register_model("moe-probe-vllm")
class MoeProbeVLLM(RecordedModel, VLLM):  # type: ignore[misc]
    """VLLM whose rows can be recorded; without `start_recording` it is VLLM."""

    _engine: EngineRecorder | None = None

    def call_engine(self, command: str, payload: Any) -> list[Any]:
        """Give a command to the probes in the engine's workers; empty where there are none."""
        try:
            return list(self.model.collective_rpc("moe_probe_call", args=(command, payload)))
        except Exception as error:
            # What a worker without the plugin raises; its type depends on the engine's processes.
            if "'moe_probe_call' is not implemented" in str(error):
                return []
            raise

    def start_recording(
        self, engine: EngineRecorder, *, tasks: Mapping[str, Any], facts: Mapping[str, Any]
    ) -> None:
        """Tag every request from now on.

        Args:
            engine: The recorder in the engine.
            tasks: lm-eval's task objects by name.
            facts: Subject and area by task name.
        """
        self._engine = engine
        self._reader = RequestReader(StretchFinder(self.tok_encode), tasks, facts)
        # vLLM scores the whole prompt, so it runs the last token too, and generates one.
        feeding = Feeding(self.max_length - 1, feeds_last=True)
        self.begin(engine, LikelihoodPlanner(self._reader, feeding=feeding, groups=False))
        self._to_come = TaggedRows()
        self._unanswered: deque[str] = deque()
        self._generate, self._step = self.model.generate, self.model.llm_engine.step
        self.model.generate = self._generate_tagged
        self.model.llm_engine.step = self._step_and_report

    def stop_recording(self) -> None:
        """Tell the engine the rest and let go of it."""
        if self._engine is not None:
            self._engine.send()
        self.abandon_recording()

    def abandon_recording(self) -> None:
        """Let go of the engine's recorder after a failure."""
        if self._engine is not None:
            del self.model.generate, self.model.llm_engine.step
        self._engine = self._books = None

    def _run_rows(self, rows: list[Row], run: Any) -> Any:
        for row in rows:
            self._to_come.add(row)
        return run()

    def _known_response(self, instance: Any) -> str | None:
        assert self._engine is not None
        if self._engine.prior is None:
            return None
        row = self._generation_row(instance)
        request, prompt_hash = row.requests[0], token_hash(row.tokens_T)
        answer = self._engine.prior.answer(request, prompt_hash)
        if answer is None:
            return None
        num_tokens = self._engine.prior.num_tokens(request, prompt_hash)
        self._engine.note_known(request, row.tokens_T, num_tokens)
        return str(answer["response"])

    def _expect_generation(self, instance: Any) -> None:
        assert self._engine is not None
        row = self._generation_row(instance)
        self._engine.expect(len(row.tokens_T))
        self._to_come.add(row)

    def _generation_row(self, instance: Any) -> Row:
        """The row of a text to generate, its prompt cut as lm-eval cuts it."""
        context, options = instance.args
        encoded = self.tok_encode(context)
        _, _, num_new = self.modify_gen_kwargs(options, default_max_gen_toks=self.max_gen_toks)
        fed, _ = maybe_truncate(
            encoded,
            max_gen_toks=num_new,
            max_model_len=self.max_length,
            side=self.truncation_side,
            verbose=False,
        )
        key, truncated = answer_key("generate_until", instance.args), len(encoded) - len(fed)
        return self._reader.row(instance, key, encoded, fed, truncated=truncated)

    def _generate_tagged(
        self, prompts: Sequence[Any], sampling_params: Sequence[Any], **options: Any
    ) -> Any:
        """In place of `LLM.generate`: send each request's row along with it."""
        assert self._engine is not None
        rows = [self._to_come.take(prompt["prompt_token_ids"]) for prompt in prompts]
        tagged = [_tagged(p, row) for p, row in zip(sampling_params, rows, strict=True)]
        options["use_tqdm"] = False
        outputs = self._generate(prompts, sampling_params=tagged, **options)
        self._engine.send()
        self._unanswered.extend(
            output.request_id
            for output, row in zip(outputs, rows, strict=True)
            if row.requests[0].kind != "loglikelihood_rolling"
        )
        return outputs

    def _step_and_report(self) -> Any:
        """In place of the engine's `step`: pass on which requests ended, and where."""
        assert self._engine is not None
        outputs = self._step()
        for output in outputs:
            if output.finished:
                # The last sampled token is not run any more.
                num_tokens = len(output.prompt_token_ids) + len(output.outputs[0].token_ids) - 1
                self._engine.ended([(output.request_id, num_tokens)])
        return outputs

    def _note_answer(self, kind: str, arguments: Any, answer: dict[str, Any]) -> None:
        # lm-eval takes in the answers in the order of their requests.
        if self._engine is not None:
            self._engine.answer(self._unanswered.popleft(), answer)


def refuse_arguments(arguments: Mapping[str, Any]) -> None:
    """Refuse what cannot be recorded; raises UsageError."""
    if arguments.get("truncation_side", "left") != "left":
        raise UsageError(
            f"truncation_side={arguments['truncation_side']} cannot be recorded, since stretches "
            "of a prompt are found from its end. Leave it out."
        )
    if int(arguments.get("data_parallel_size", 1)) > 1:
        raise UsageError(
            "data_parallel_size makes lm-eval run separate engines, whose rows are apart. Leave "
            "it out, or start one `vllm serve --data-parallel-size N` and use --server."
        )


def _tagged(sampling_params: Any, row: Row) -> Any:
    params = copy.copy(sampling_params)
    params.extra_args = {**(params.extra_args or {}), TAG: describe(row)}
    # What the prefix cache answers is not routed; the trace is to have every prompt token.
    params.skip_reading_prefix_cache = True
    return params
