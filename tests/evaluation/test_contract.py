"""The private parts of lm-eval that recording stands on: fails loudly when they change."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from lm_eval.api.model import CacheHook, CachingLM
from lm_eval.models.huggingface import HFLM

from moe_probe.errors import UsageError
from moe_probe.evaluation.engines.hf_model import MoeProbeHF
from moe_probe.evaluation.engines.model import RecordedModel
from moe_probe.recording.recorder import Recorder

SIGNATURES = {
    "loglikelihood": ["self", "requests", "disable_tqdm"],
    "loglikelihood_rolling": ["self", "requests", "disable_tqdm"],
    "_loglikelihood_tokens": ["self", "requests", "disable_tqdm", "override_bs"],
    "_model_call": ["self", "inps", "attn_mask", "labels"],
    "_detect_batch_size": ["self", "requests", "pos"],
    "generate_until": ["self", "requests", "disable_tqdm"],
    "tok_batch_encode": ["self", "strings", "padding_side", "left_truncate_len", "truncation"],
    "_model_generate": ["self", "context", "max_length", "stop", "generation_kwargs"],
    "set_cache_hook": ["self", "cache_hook"],
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_overridden_methods_are_as_expected(name: str) -> None:
    assert list(inspect.signature(getattr(HFLM, name)).parameters) == SIGNATURES[name]
    assert name in {**vars(RecordedModel), **vars(MoeProbeHF)}


def test_answers_are_reported_to_the_cache_hook() -> None:
    assert list(inspect.signature(CacheHook.add_partial).parameters) == [
        "self",
        "attr",
        "req",
        "res",
    ]
    source = inspect.getsource(HFLM._loglikelihood_tokens)
    assert "self.cache_hook.add_partial" in source
    assert "self.cache_hook.add_partial" in inspect.getsource(HFLM.generate_until)


def test_the_answer_cache_is_refused_while_recording(tmp_path: Any) -> None:
    lm = MoeProbeHF.__new__(MoeProbeHF)
    lm._books = Recorder.__new__(Recorder)
    with pytest.raises(UsageError, match="use_cache cannot be combined with recording"):
        CachingLM(lm, str(tmp_path / "cache.db"))
