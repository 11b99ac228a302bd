"""Imbalance of batches, from batches that are made token by token."""

from __future__ import annotations

import math
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from examples.import_arrays import Source, import_arrays
from moe_probe.analysis import analyse, batch_balance
from moe_probe.errors import UsageError
from moe_probe.trace import LayerSpec, TraceWriter
from tests.analysis.documents import DATA, needs_data
from tests.analysis.streams import LAYERS, Token, canonical, make_stream

SIZES = (2, 4, 12)


def cut(tokens: list[Token], size: int) -> list[list[Token]]:
    """Full batches of consecutive tokens."""
    return [tokens[i : i + size] for i in range(0, len(tokens) - size + 1, size)]


def expected_batches(tokens: list[Token], seed: int) -> dict[tuple[str, int], list[list[Token]]]:
    ordered = canonical(tokens)
    documents = [list(d) for _, d in groupby(ordered, lambda t: (t.subject, t.document))]
    subjects = [list(s) for _, s in groupby(ordered, lambda t: t.subject)]
    shuffled = [documents[n] for n in np.random.default_rng(seed).permutation(len(documents))]
    mixed = [token for document in shuffled for token in document]
    found = {}
    for size in SIZES:
        found["document", size] = [b for d in documents for b in cut(d, size)]
        found["subject", size] = [b for s in subjects for b in cut(s, size)]
        found["random documents", size] = cut(mixed, size)
    by_sequence = sorted(tokens, key=lambda t: t.sequence)
    sequences = [list(s) for _, s in groupby(by_sequence, lambda t: t.sequence)]
    found["sequence", 0] = sequences
    found["all", 0] = [tokens]
    return found


@pytest.mark.parametrize(("seed", "documents", "prefix"), [(0, 14, 3), (1, 30, 2), (2, 1, 0)])
def test_against_batches_of_single_tokens(
    tmp_path: Path, seed: int, documents: int, prefix: int
) -> None:
    trace, tokens = make_stream(tmp_path / "trace", seed, documents=documents, prefix=prefix)
    found = batch_balance(trace, sizes=SIZES, seed=seed, threads=1 + seed)
    wanted = expected_batches(tokens, seed)
    for spec in LAYERS:
        table = found[found["layer"] == spec.layer]
        assert len(table) == len(wanted)
        for row in table.to_dict("records"):
            size = 0 if row["batching"] in ("sequence", "all") else row["tokens_per_batch"]
            if pd.isna(size):
                assert row["batches"] == 0
                continue
            values = []
            for batch in wanted[row["batching"], int(size)]:
                chosen = [expert for token in batch for expert in token.experts[spec.layer]]
                counts = [chosen.count(expert) for expert in range(spec.num_experts)]
                if chosen:
                    mean = len(chosen) / len(counts)
                    values.append((len(batch), max(counts) / mean - 1, np.std(counts) / mean))
            lengths, vio, spread = map(np.array, zip(*values, strict=True))
            assert row["batches"] == len(values)
            assert row["tokens_per_batch"] == pytest.approx(lengths.mean())
            assert row["max_vio"] == pytest.approx(vio.mean())
            assert row["cv"] == pytest.approx(spread.mean())
            sd = vio.std(ddof=1) if len(vio) > 1 else math.nan
            assert row["max_vio_sd"] == pytest.approx(sd, nan_ok=True)


def test_parts_without_rows(tmp_path: Path) -> None:
    trace, _ = make_stream(tmp_path / "trace", 1, documents=30, prefix=2)
    expected = batch_balance(trace, sizes=SIZES)
    first, second = (pq.read_table(path) for path in trace.routing_parts[:2])
    pq.write_table(pa.concat_tables([first, second]), trace.routing_parts[0])
    pq.write_table(second.slice(0, 0), trace.routing_parts[1])
    pd.testing.assert_frame_equal(batch_balance(tmp_path / "trace", sizes=SIZES), expected)


def write(path: Path, subjects: int, drift: float) -> Path:
    """Documents of 64 tokens; each subject prefers one of 16 experts, k = 2."""
    rng = np.random.default_rng(0)
    with TraceWriter(path, layers=[LayerSpec(layer=0, num_experts=16, top_k=2)]) as writer:
        for number in range(320):
            subject = number % subjects
            favoured = drift * (np.arange(16) == subject)
            ids = np.argsort(rng.random((64, 16)) - favoured, axis=1)[:, :2]
            writer.add([ids], task="t", subject=chr(97 + subject), doc_id=number)
    return path


def by_kind(path: Path) -> dict[Any, dict[Any, Any]]:
    return batch_balance(path, sizes=[1024]).set_index("batching").to_dict("index")


def test_fair_batches_are_as_uneven_as_chance_makes_them(tmp_path: Path) -> None:
    table = by_kind(write(tmp_path / "t", 16, 0.0))
    for name in ("subject", "random documents"):
        row = table[name]
        assert row["batches"] >= 16
        error = row["max_vio_sd"] / math.sqrt(row["batches"])
        assert abs(row["max_vio"] - row["max_vio_null"]) < 3 * error
        assert row["cv"] == pytest.approx(row["cv_null"], rel=0.1)
    assert table["document"]["batches"] == 0
    assert table["sequence"]["tokens_per_batch"] == 64
    assert table["sequence"]["cv"] == pytest.approx(table["sequence"]["cv_null"], rel=0.1)


def test_chance_in_batches_whose_tokens_select_fewer_experts(tmp_path: Path) -> None:
    """Fair routing, where the tokens of one subject select one expert and all others four."""
    rng = np.random.default_rng(1)
    spec = LayerSpec(layer=0, num_experts=64, top_k=4, empty_slots=True)
    with TraceWriter(tmp_path / "trace", layers=[spec]) as writer:
        for number in range(240):
            ids_TK = np.argsort(rng.random((64, 64)), axis=1)[:, :4]
            if number % 2:
                ids_TK[:, 1:] = -1
            writer.add([ids_TK], subject=f"s{number % 2}", doc_id=number)
    table = by_kind(tmp_path / "trace")
    for kind in ("sequence", "subject"):
        assert table[kind]["cv"] == pytest.approx(table[kind]["cv_null"], rel=0.05)
        assert table[kind]["max_vio"] == pytest.approx(table[kind]["max_vio_null"], rel=0.07)


def test_specialisation_vanishes_in_mixed_batches_and_stays_in_those_of_a_subject(
    tmp_path: Path,
) -> None:
    path = write(tmp_path / "t", 16, 1.0)
    table = by_kind(path)
    assert table["subject"]["max_vio"] > 6
    assert table["random documents"]["max_vio"] < 3
    # Loads of all tokens are those of the report.
    whole: Any = analyse(path, shuffles=1, replicates=2, permutations=2).layers.iloc[0]
    assert table["all"]["max_vio"] == whole["max_vio"]
    assert table["all"]["max_vio_null"] == whole["max_vio_null"]
    assert table["all"]["tokens_per_batch"] == whole["tokens"]
    assert whole["max_vio"] < 0.2


def test_wrong_calls(tmp_path: Path) -> None:
    path = write(tmp_path / "t", 2, 0.0)
    for sizes in ([], [0], [4, 6]):
        with pytest.raises(ValueError, match="each a multiple of the first"):
            batch_balance(path, sizes=sizes)
    with TraceWriter(tmp_path / "twice", layers=[LayerSpec(layer=0, num_experts=4, top_k=1)]) as w:
        w.add([np.zeros((5, 1), np.int64)], multiplicity=2)
    with pytest.raises(UsageError, match="Batches need every token once"):
        batch_balance(tmp_path / "twice", rule="raw")


@needs_data
def test_published_batches(tmp_path: Path) -> None:
    """DeepSeek-V2-Lite on law and intent: mixing evens out loads, not size."""
    sources = [Source.of(DATA / f"{task}.npz") for task in ("law", "intent")]
    path = import_arrays(
        sources, tmp_path / "t", num_experts=64, first_layer=1, task="esft", force=False
    )
    by_size = batch_balance(path).groupby(["batching", "tokens_per_batch"])
    found: Any = by_size["max_vio"].mean()
    with np.load(DATA / "law.npz") as law, np.load(DATA / "intent.npz") as intent:
        tasks = [file["experts"].astype(np.int64) for file in (intent, law)]
    for size in (256, 1024, 4096):
        vio = []
        for ids_TLK in tasks:
            for start in range(0, len(ids_TLK) - size + 1, size):
                for layer in range(26):
                    counts = np.bincount(ids_TLK[start : start + size, layer].ravel(), minlength=64)
                    vio.append(counts.max() / counts.mean() - 1)
        assert found["subject", size] == pytest.approx(np.mean(vio))
    whole = [
        np.mean([np.bincount(ids.ravel(), minlength=64).max() / ids.size * 64 - 1 for ids in task])
        for task in (ids_TLK.swapaxes(0, 1) for ids_TLK in tasks)
    ]
    assert [round(value, 2) for value in whole] == [2.81, 2.52]
    assert found["subject", 4096] == pytest.approx(np.mean(whole), abs=0.01)
    assert found["random documents", 4096] < 0.7 * found["subject", 4096]
