"""How large a recording would be: lm-eval builds the real prompts, nothing runs a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lm_eval import simple_evaluate
from lm_eval.api.model import TemplateLM
from transformers import AutoModelForCausalLM, AutoTokenizer

from moe_probe.evaluation.plan import RecordPlan
from moe_probe.evaluation.sizing import estimate_trace_bytes
from moe_probe.hooks.config_facts import num_experts, text_config, top_k
from moe_probe.hooks.transformers.detector import find_sites
from moe_probe.recording.contexts import ContextIndex
from moe_probe.trace import LayerSpec

_DEFAULT_MAX_LENGTH = 2048


@dataclass(frozen=True, kw_only=True)
class RunSize:
    """What a run would take."""

    num_documents: int
    num_tokens: int
    """Prompt tokens the model would run; generated ones come on top."""
    num_new_tokens: int
    """Of these, tokens with a context not run before: what the trace stores."""
    num_layers: int
    trace_bytes: int


class _CountingLM(TemplateLM):  # type: ignore[misc]
    """Tokenizes every request as HFLM does and counts; answers are placeholders."""

    def __init__(self, tokenizer: Any, max_length: int) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.num_tokens = self.num_new_tokens = 0
        self.documents: set[tuple[str, int]] = set()
        self._contexts = ContextIndex()

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id or 0)

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        special = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        return list(self.tokenizer.encode(string, **special))

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> Any:
        self._note_documents(requests)
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

    def _loglikelihood_tokens(self, requests: list[Any], **kwargs: Any) -> list[tuple[float, bool]]:
        for prompt in {tuple((c + t)[-(self.max_length + 1) :][:-1]) for _, c, t in requests}:
            self._count(list(prompt))
        return [(0.0, False)] * len(requests)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        self._count_texts(requests)
        return [0.0] * len(requests)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        self._count_texts(requests)
        return [""] * len(requests)

    def _count_texts(self, requests: list[Any]) -> None:
        self._note_documents(requests)
        for request in requests:
            self._count(self.tok_encode(request.args[0]))

    def _note_documents(self, requests: list[Any]) -> None:
        self.documents.update((request.task_name, request.doc_id) for request in requests)

    def _count(self, tokens: list[int]) -> None:
        self.num_tokens += len(tokens)
        self.num_new_tokens += len(tokens) - self._contexts.add(np.asarray(tokens, np.int32))


def measure(plan: RecordPlan) -> RunSize:
    """Build every prompt of a plan and add up; raises UsageError where the data is missing."""
    options, text = plan.options, text_config(plan.config)
    tokenizer = AutoTokenizer.from_pretrained(options.model.identifier)
    positions = getattr(text, "max_position_embeddings", _DEFAULT_MAX_LENGTH)
    max_length = int(options.model_args.get("max_length") or positions)
    lm = _CountingLM(tokenizer, max_length)
    simple_evaluate(
        model=lm,
        tasks=plan.tasks.load(plan.num_fewshot),
        task_manager=plan.tasks.manager,
        num_fewshot=plan.num_fewshot,
        limit=options.limit,
        bootstrap_iters=0,
    )
    layers = _layers(plan)
    stored = lm.num_new_tokens // options.sample_every
    return RunSize(
        num_documents=len(lm.documents),
        num_tokens=lm.num_tokens,
        num_new_tokens=lm.num_new_tokens,
        num_layers=len(layers),
        trace_bytes=estimate_trace_bytes(layers, stored, options.capture),
    )


def _layers(plan: RecordPlan) -> list[LayerSpec]:
    if plan.options.baseline:
        return []
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(plan.config)
    experts, slots = num_experts(plan.config), top_k(plan.config)
    return [
        LayerSpec(layer=site.layer, num_experts=experts, top_k=slots) for site in find_sites(model)
    ]
