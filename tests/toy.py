"""A byte-level tiny MoE and toy tasks of every request type, made on the spot."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3MoeConfig,
)

SHAPE = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 4096,
    "num_experts": 16,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 32,
    "mlp_only_layers": [1],
}

_MCQ = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}\\nAnswer:"
doc_to_choice: {choices}
doc_to_target: answer
description: "About {name}.\\n\\n"
metric_list: [{{metric: acc}}]
"""
_GENERATE = """
task: toy_generate
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}\\nAnswer:"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["\\n\\n", "e"], max_gen_toks: 12, do_sample: false}}
metric_list: [{{metric: exact_match}}]
"""
_ROLLING = """
task: toy_rolling
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{question}}}}"
metric_list: [{{metric: word_perplexity}}]
"""


def save_byte_model(folder: Path, *, seed: int = 0, **changes: object) -> Path:
    """Save a random Qwen3-MoE whose tokens are bytes; token 0 is a real byte, as in many models."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(Qwen3MoeConfig(**{**SHAPE, **changes}))
    return save_with_bytes(model, folder)


def save_with_bytes(model: PreTrainedModel, folder: Path) -> Path:
    """Save a model of 258 or more tokens beside a tokenizer whose tokens are bytes."""
    model.save_pretrained(folder)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: index for index, character in enumerate(alphabet)}
    vocabulary |= {"<pad>": 256, "<eos>": 257}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")
    fast.save_pretrained(folder)
    return folder


def save_toy_tasks(folder: Path, *, scale: int = 1) -> Path:
    """Make an include path of toy_alpha, toy_beta, toy_words, toy_generate and toy_rolling.

    With `scale`, each has that many times the documents.
    """
    words = ["stone", "river", "cloud!", "a", "lamp post", "tin", "violet", "oak tree"]
    for name, count in (("toy_alpha", 9), ("toy_beta", 7), ("toy_words", 5)):
        docs = [
            # The last character is byte 0 of the vocabulary, which is also what lm-eval pads with.
            {"question": f"{name} {i}: {' '.join(words[: i % 8 + 1])}!!", "answer": i % 4}
            for i in range(count * scale)
        ]
        # Two documents with the same prompt: lm-eval runs it once.
        docs.append(dict(docs[1]))
        choices = ["north", "south-east", "up", "d"] if name == "toy_words" else list("ABCD")
        _write(folder, name, docs, _MCQ, choices=json.dumps(choices))
    docs = [{"question": f"say {word} {i}", "answer": "x"} for i, word in enumerate(words * scale)]
    _write(folder, "toy_generate", docs, _GENERATE)
    docs = [{"question": (f"{word} " * (30 + 40 * i)).strip()} for i, word in enumerate(words[:4])]
    _write(folder, "toy_rolling", docs, _ROLLING)
    return folder


def _write(folder: Path, name: str, docs: list[dict[str, object]], text: str, **names: str) -> None:
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    (folder / f"{name}.yaml").write_text(text.format(name=name, data=data, **names))
