"""lm-eval's class for completions over HTTP, telling a vLLM server which row every request is."""

from __future__ import annotations

import json
import uuid
from collections import defaultdict, deque
from collections.abc import Hashable, Mapping
from typing import Any

from lm_eval.api.registry import register_model
from lm_eval.models.openai_completions import LocalCompletionsAPI

from moe_probe.evaluation.engines.model import RecordedModel
from moe_probe.evaluation.engines.remote import EngineRecorder, TaggedRows
from moe_probe.evaluation.likelihoods import Feeding, LikelihoodPlanner
from moe_probe.evaluation.requests import RequestReader, answer_key
from moe_probe.evaluation.stretches import StretchFinder
from moe_probe.recording.rows import Row
from moe_probe.recording.tags import TAG, describe


@register_model("moe-probe-server")
class MoeProbeServer(RecordedModel, LocalCompletionsAPI):  # type: ignore[misc]
    """LocalCompletionsAPI whose rows a server with the plugin records, one prompt a request."""

    _engine: EngineRecorder | None = None

    def start_recording(
        self,
        engine: EngineRecorder,
        *,
        run: str,
        tasks: Mapping[str, Any],
        facts: Mapping[str, Any],
    ) -> None:
        """Tag every request from now on.

        Args:
            engine: The recorder in the server.
            run: Names this evaluation among the server's traffic.
            tasks: lm-eval's task objects by name.
            facts: Subject and area by task name.
        """
        self._engine, self._run = engine, run
        self._reader = RequestReader(StretchFinder(self.tok_encode), tasks, facts)
        # The whole prompt is scored, so its last token is run too; one is generated.
        feeding = Feeding(self.max_length, feeds_last=True)
        self.begin(engine, LikelihoodPlanner(self._reader, feeding=feeding, groups=False))
        self._to_come = TaggedRows()
        self._unanswered: dict[Hashable, deque[tuple[str, int]]] = defaultdict(deque)

    def stop_recording(self) -> None:
        """Tell the server the rest and let go of it."""
        if self._engine is not None:
            self._engine.send()
        self.abandon_recording()

    def abandon_recording(self) -> None:
        """Let go of the server after a failure."""
        self._engine = self._books = None

    def _run_rows(self, rows: list[Row], run: Any) -> Any:
        for row in rows:
            self._to_come.add(row)
        return list(run())

    def _known_response(self, instance: Any) -> str | None:
        return None

    def _expect_generation(self, instance: Any) -> None:
        assert self._engine is not None
        context, options = instance.args
        encoded = self.tok_encode(context, add_special_tokens=self.add_bos_token)
        # As lm-eval cuts it.
        room = self.max_length - int(options.get("max_gen_toks", self._max_gen_toks))
        fed = encoded[-room:]
        key = answer_key("generate_until", instance.args)
        row = self._reader.row(instance, key, encoded, fed, truncated=len(encoded) - len(fed))
        self._engine.expect(len(fed))
        self._to_come.add(row)

    def _create_payload(self, messages: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        payload = super()._create_payload(messages, *args, **kwargs)
        if self._engine is None:
            return dict(payload)
        (prompt,) = messages
        row = self._to_come.take(prompt)
        name = uuid.uuid4().hex
        # The server's name of the first prompt of a request.
        self._unanswered[row.requests[0].answer_key].append((f"cmpl-{name}-0", len(prompt)))
        tag = json.dumps(describe(row, run=self._run))
        return {**payload, "request_id": name, "vllm_xargs": {TAG: tag}}

    def _note_answer(self, kind: str, arguments: Any, answer: dict[str, Any]) -> None:
        names = self._unanswered.get(answer_key(kind, arguments))
        if self._engine is not None and names:
            # Of a request that was sent again, the last one was answered.
            name, num_tokens = names.pop()
            self._engine.answer(name, answer)
            self._engine.report_progress(num_tokens)
