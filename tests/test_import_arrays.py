"""examples/import_arrays.py: what the files hold is in the trace, and what cannot be is refused.

Shape suffixes: T tokens of a file, D documents, L layers, K slots.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from examples.import_arrays import Source, main
from moe_probe.trace import Trace, open_trace

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared/data/deepseek-v2-lite"
NUM_EXPERTS, NUM_LAYERS, TOP_K = 9, 3, 4
Arrays = dict[str, np.ndarray]
Row = list[tuple[int, float]]
Imported = Callable[..., tuple[int, str, str]]


def arrays(lengths: list[int], seed: int = 0, *, weights: bool = True) -> Arrays:
    """Return distinct experts in no order, weights with ties, and the documents' lengths."""
    rng = np.random.default_rng(seed)
    shape = sum(lengths), NUM_LAYERS, NUM_EXPERTS
    experts_TLK = np.argsort(rng.random(shape), axis=2)[:, :, :TOP_K].astype(np.uint8)
    found: Arrays = {"experts": experts_TLK, "document_lengths": np.array(lengths, np.int32)}
    if weights:
        found["weights"] = rng.integers(0, 4, experts_TLK.shape).astype(np.float16) / 16
    return found


def save(path: Path, content: Arrays) -> None:
    path.parent.mkdir(exist_ok=True)
    np.savez_compressed(path, allow_pickle=True, **content)


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Imported:
    """Save files, import them into tmp_path/"trace", and return exit code, stdout, stderr."""

    def call(files: dict[str, Arrays], *options: str) -> tuple[int, str, str]:
        for name, content in files.items():
            save(tmp_path / name, content)
        given = ["-o", str(tmp_path / "trace"), "--num-experts", str(NUM_EXPERTS), *options]
        paths = [str(tmp_path / name) for name in files]
        monkeypatch.setattr(sys, "argv", ["import_arrays.py", *paths, *given])
        code = main()
        return code, *capsys.readouterr()

    return call


def rows(trace: Trace, layer: int, subject: str, *, weights: bool) -> list[list[Row]]:
    """Return a subject's documents as rows of (expert, weight), slot by slot."""
    names = ("sequence_id", "doc_id", "subject")
    columns = (trace.sequences[name].to_pylist() for name in names)
    documents = {s: d for s, d, name in zip(*columns, strict=True) if name == subject}
    found: list[list[Row]] = [[] for _ in documents]
    for block in trace.scan([layer], weights=weights):
        ids_TK = block.topk_ids(layer)
        weights_TK = block.topk_weights(layer) if weights else np.zeros(ids_TK.shape)
        for row, sequence in enumerate(block.sequence_id_T.tolist()):
            if sequence in documents:
                document = found[documents[sequence]]
                assert block.position_T[row] == len(document)
                document.append(list(zip(ids_TK[row], weights_TK[row], strict=True)))
    return found


def test_every_document_is_a_sequence_with_its_rows(run: Imported, tmp_path: Path) -> None:
    files = {"law.npz": arrays([3, 1, 0, 5]), "intent.npz": arrays([2], seed=1)}
    code, out, err = run(files, "--first-layer", "2", "--task", "esft")
    assert (code, out, err) == (0, f"{tmp_path / 'trace'}\n", "")
    trace = open_trace(tmp_path / "trace")
    assert list(trace.layers) == [2, 3, 4]
    assert trace.run["slot_order"] == "descending_weight"
    assert set(trace.sequences["task"].to_pylist()) == {"esft"}
    assert set(trace.sequences["kind"].to_pylist()) == {"imported"}
    for name, content in files.items():
        stops_D = np.cumsum(content["document_lengths"])
        for index, layer in enumerate(trace.layers):
            expected = []
            for start, stop in zip([0, *stops_D[:-1]], stops_D, strict=True):
                ids_TK = content["experts"][start:stop, index].tolist()
                weights_TK = content["weights"][start:stop, index].tolist()
                pairs = [
                    sorted(zip(ids, gates, strict=True), key=lambda pair: -pair[1])
                    for ids, gates in zip(ids_TK, weights_TK, strict=True)
                ]
                expected.append(pairs)
            assert rows(trace, layer, Path(name).stem, weights=True) == expected


def test_without_weights_slots_stay_as_they_are(run: Imported, tmp_path: Path) -> None:
    files = {"law.npz": arrays([2, 4]), "intent.npz": arrays([3], weights=False)}
    assert run(files)[0] == 0
    trace = open_trace(tmp_path / "trace")
    assert (trace.capture, trace.run["slot_order"]) == ("ids", "unknown")
    found = [row for document in rows(trace, 1, "law", weights=False) for row in document]
    assert [[expert for expert, _ in row] for row in found] == files["law.npz"]["experts"][
        :, 1
    ].tolist()


@pytest.mark.filterwarnings("error")
def test_weights_that_float16_does_not_hold_are_kept_without_a_word(
    run: Imported, tmp_path: Path
) -> None:
    content = arrays([3])
    content["weights"] = content["weights"].astype(np.float64) + 1e6
    assert run({"a.npz": content}) == (0, f"{tmp_path / 'trace'}\n", "")
    (block,) = open_trace(tmp_path / "trace").scan(weights=True)
    assert np.isposinf(block.topk_weights(0)).all()


def without(name: str) -> Arrays:
    return {key: value for key, value in arrays([3]).items() if key != name}


def changed(**content: Any) -> Arrays:
    return arrays([3]) | {name: np.asarray(value) for name, value in content.items()}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.npz": without("experts")}, "has no array experts"),
        ({"a.npz": without("document_lengths")}, "has no array document_lengths"),
        ({"a.npz": changed(document_lengths=[2, 2])}, "has 3 tokens, but .* sum to 4"),
        ({"a.npz": changed(document_lengths=[4, -1])}, "the least being -1"),
        (
            {"a.npz": changed(document_lengths=[2**63 - 1, 2**63 - 1, 5])},
            "3 tokens, but .* sum to 18,446,744,073,709,551,619",
        ),
        ({"a.npz": changed(document_lengths=[3.0])}, "float64 .*integers"),
        ({"a.npz": changed(experts=np.zeros((3, 4), int))}, r"shape \(3, 4\)"),
        ({"a.npz": changed(experts=np.zeros((3, 3, 4)))}, "float64 .*integers"),
        ({"a.npz": changed(experts=np.zeros((3, 3, 4), int, order="F"))}, "Fortran order"),
        ({"a.npz": changed(weights=np.zeros((3, 3, 5)))}, r"weights \(3, 3, 5\)"),
        (
            {"a.npz": arrays([3]), "b.npz": changed(experts=np.zeros((3, 2, 4), int))},
            r"weights \(3, 3, 4\) for experts \(3, 2, 4\)",
        ),
        (
            {
                "a.npz": arrays([3]),
                "b.npz": without("weights") | {"experts": np.zeros((3, 2, 4), int)},
            },
            "3 layers and 4 slots, but .* has 2 and 4",
        ),
        ({"a.npz": arrays([3]), "more/a.npz": arrays([3])}, "Two files are named a"),
    ],
)
def test_what_does_not_fit_is_one_sentence(
    run: Imported, tmp_path: Path, files: dict[str, Any], message: str
) -> None:
    code, out, err = run(files)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("Error: ")
    assert err.endswith(".\n")
    assert re.search(message, err)
    assert not (tmp_path / "trace").exists()


def test_unknown_expert_ends_the_trace_as_failed(run: Imported, tmp_path: Path) -> None:
    content = arrays([3, 2])
    content["experts"][4, 1, 0] = NUM_EXPERTS
    code, out, err = run({"a.npz": content})
    assert (code, out) == (2, "")
    assert "a.npz, document 1: layer 1: ids from" in err
    assert json.loads((tmp_path / "trace/run.json").read_text())["status"] == "failed"


def test_file_that_is_absent_broken_or_cut(run: Imported, tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("text")
    for name in ("absent.npz", "text.npz"):
        with pytest.raises(Exception, match=f"{name} cannot be read as an .npz file"):
            Source.of(tmp_path / name)
    assert run({"a.npz": arrays([400])})[0] == 0
    whole = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "a.npz").write_bytes(whole[:300] + bytes(100) + whole[400:])
    with pytest.raises(Exception, match=r"a\.npz cannot be read as an \.npz file"):
        list(Source.of(tmp_path / "a.npz").documents(weights=True))


class Trap:
    """Leaves a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_nothing_is_unpickled(run: Imported, tmp_path: Path) -> None:
    trap = np.empty((3, NUM_LAYERS, TOP_K), object)
    trap[:] = Trap(tmp_path / "touched")
    code, _, err = run({"a.npz": arrays([3]) | {"experts": trap}})
    assert (code, "integers in C order are needed" in err) == (2, True)
    assert not (tmp_path / "touched").exists()


def test_existing_trace_needs_force(run: Imported, tmp_path: Path) -> None:
    assert run({"a.npz": arrays([3])})[0] == 0
    assert run({"b.npz": arrays([4])})[0] == 2
    assert run({"b.npz": arrays([4])}, "--force")[0] == 0
    assert open_trace(tmp_path / "trace").sequences["subject"].to_pylist() == ["b"]


def test_one_document_is_in_memory_at_a_time(tmp_path: Path) -> None:
    content = arrays([500] * 100)
    save(tmp_path / "a.npz", content)
    source = Source.of(tmp_path / "a.npz")
    tracemalloc.start()
    try:
        tokens = sum(len(ids_TLK) for ids_TLK, _ in source.documents(weights=True))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert tokens == 50_000
    assert peak < content["experts"].nbytes


@pytest.mark.skipif(not DATA.is_dir(), reason="the published DeepSeek-V2-Lite rows are not here")
def test_published_rows_as_a_user_imports_them(tmp_path: Path) -> None:
    def call(*arguments: object) -> str:
        command = [sys.executable, *map(str, arguments)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    files = DATA / "law.npz", DATA / "intent.npz"
    options = ("--num-experts", 64, "--first-layer", 1, "-o", tmp_path / "trace")
    trace = Path(call("examples/import_arrays.py", *files, *options).rstrip("\n"))
    assert "fail" not in call("-m", "moe_probe", "check", trace)
    assert "26 MoE layers" in call("-m", "moe_probe", "report", trace, "--tables-only")
    counts = open_trace(trace).counts.to_pandas()
    for subject, max_vio in (("law", 2.52), ("intent", 2.81)):
        chosen = counts[counts.subject == subject]
        counts_LN = chosen.pivot_table("count", "layer", "expert", "sum", fill_value=0).to_numpy()
        load_LN = counts_LN / counts_LN.mean(axis=1, keepdims=True)
        assert (load_LN.max(axis=1) - 1).mean() == pytest.approx(max_vio, abs=0.005)
