"""What a comparison says in words: what limits it, and what it found."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from moe_probe.analysis.comparison import Comparison
from moe_probe.analysis.comparison.accuracy import BASELINE
from moe_probe.analysis.comparison.sums import PairSums, SideSums
from moe_probe.analysis.comparison.tables import LEVEL
from moe_probe.analysis.report.contents import one_line


def notes(found: Comparison) -> list[str]:
    """Say what makes numbers unreliable or absent."""
    gathered = found.gathered
    texts: list[str] = []
    for side in gathered.sides:
        texts += _own_notes(side)
    first = gathered.reference.side
    for pair in gathered.pairs:
        texts += _pair_notes(pair, _name(first.label), str(first.trace.run.get("model") or ""))
    return texts


def _own_notes(side: SideSums) -> Iterator[str]:
    name = _name(side.side.label)
    failed = _failed(side)
    status = one_line(side.side.trace.run.get("status", "unknown"))
    if failed:
        yield (
            f"{name} fails {', '.join(failed)}, so its numbers cannot be trusted and nothing is "
            "said of it in words."
        )
    if status != "complete":
        yield f"The recording {name} is not complete (status: {status})."
    if side.side.source is None:
        yield f"{name} has counts only, so differences have no intervals and tokens no partners."
    if not any(each.assignments for each in side.counts.by_layer()):
        yield f"No token of {name} counts under this rule."


def _pair_notes(pair: PairSums, reference: str, model: str) -> Iterator[str]:
    name = _name(pair.other.side.label)
    own_model = str(pair.other.side.trace.run.get("model") or "")
    if not pair.corresponds:
        yield (
            f"{name} has other layers or other numbers of experts than {reference}: their experts "
            "do not correspond, and only indices of whole layers are compared."
        )
        return
    if model and own_model and model != own_model:
        yield (
            f"{name} is of another model than {reference}. Experts of equal number are the same "
            "only where one model was made from the other."
        )
    if pair.layers and not pair.paired_documents:
        yield (
            f"{name} and {reference} have no document in common: their loads are compared as "
            "those of independent samples."
        )
    elif pair.layers and pair.paired_documents < pair.other.documents:
        yield (
            f"{pair.paired_documents:,} of {pair.other.documents:,} documents of {name} are in "
            f"{reference} too; only these are paired."
        )
    if pair.agreement is None and pair.layers:
        yield (
            f"{name} ran no text of {reference}, as far as token ids and prompt hashes tell: "
            "there is no agreement of tokens."
        )


def findings(found: Comparison) -> dict[str, list[str]]:
    """Return for each compared trace what was found; nothing where a quality check failed."""
    gathered = found.gathered
    texts = {}
    for pair in gathered.pairs:
        label = pair.other.side.label
        trusted = not _failed(pair.other) and not _failed(gathered.reference)
        texts[label] = [
            text
            for say in (_loads, _divergence, _agreement, _margins, _accuracy)
            for text in (say(found, label) if trusted else ())
        ]
    return texts


def _loads(found: Comparison, label: str) -> Iterator[str]:
    table = _of(found, "experts", label)
    known = table[table["difference"].notna()]
    if known.empty:
        return
    most: Any = known.iloc[int(known["difference"].abs().argmax())]
    place = f"expert {most.expert} of layer {most.layer}"
    size = f"{most.difference:+.3g} of a fair share, {place}"
    if not known["difference"].any():
        yield f"All {len(known):,} relative loads are equal."
    elif known["ci_low"].isna().all():
        yield f"The largest difference of relative load is {size}."
    else:
        number = int((known["q_value"] < LEVEL).sum())
        yield (
            f"{number:,} of {len(known):,} experts have another relative load (q < {LEVEL}). The "
            f"largest difference is {size} (95 %: {most.ci_low:+.3g} to {most.ci_high:+.3g})."
        )


def _divergence(found: Comparison, label: str) -> Iterator[str]:
    table = _of(found, "layers", label)
    if table.empty or table["divergence_bits"].isna().all():
        return
    bits, noise = table["divergence_bits"], table["divergence_noise_bits"]
    text = f"The loads of a layer are {bits.mean():.2g} bits apart on average"
    if noise.notna().all():
        above = int((bits > noise).sum())
        text += f"; noise alone gives {noise.mean():.2g}, and {above} of {len(table)} layers exceed"
        text += " it"
    if bits.any():
        yield f"{text}. Their rank correlation is {table['spearman'].mean():.3f}."
    idle = table[["idle_reference", "idle_other", "idle_both"]].sum()
    if idle.any():
        yield (
            f"Idle experts: {idle['idle_reference']} in the reference alone, {idle['idle_other']} "
            f"in this trace alone, {idle['idle_both']} in both."
        )


def _agreement(found: Comparison, label: str) -> Iterator[str]:
    table, first = (_of(found, name, label) for name in ("agreement", "first_divergence"))
    if table.empty:
        return
    whole = float(first.loc[first["layer"].isna(), "share"].iloc[0])
    tokens = int(table["tokens"].iloc[0])
    yield (
        f"Of {tokens:,} tokens after the same text {table['same_set'].mean():.2%} select the same "
        f"experts in a layer, and {whole:.2%} in every layer; {table['overlap'].mean():.2%} of the "
        f"experts are common ({table['overlap_null_own'].mean():.2%} by chance)."
    )
    if whole < 1:
        known = first.dropna(subset=["layer"])
        most: Any = known.iloc[int(known["share"].argmax())]
        yield f"Tokens differ first most often in layer {most.layer}."
    floor = table[["repeated_reference", "repeated"]].mean().min()
    if floor < 1:
        yield f"Inside one trace repeated prompts select the same experts in {floor:.2%}."


def _margins(found: Comparison, label: str) -> Iterator[str]:
    table = _of(found, "margins", label)
    known = table[table["different_tokens"] > 0] if len(table) else table
    if len(known) and known["smaller"].notna().any():
        yield (
            f"A token that differs has a smaller router margin than one that agrees with chance "
            f"{known['smaller'].mean():.2f} (0.5 if margins did not matter)."
        )


def _accuracy(found: Comparison, label: str) -> Iterator[str]:
    table = _of(found, "accuracy", label)
    if table.empty:
        return
    own: Any = table.iloc[0]  # of all subjects
    text = f"Accuracy {own.accuracy:.3f} on {own.documents:,} documents"
    if pd.notna(own.difference):
        text += f", {own.difference:+.3f} against the reference"
        if pd.notna(own.difference_low):
            text += f" (95 %: {own.difference_low:+.3f} to {own.difference_high:+.3f})"
    if pd.notna(own.only_reference):
        text += (
            f"; of {own.paired_documents:,} common ones {own.only_reference:,} are right in the "
            f"reference alone and {own.only_other:,} in this trace alone"
        )
    if found.baseline is not None:
        text += f"; the dense {BASELINE} has {found.baseline.accuracy:.3f}"
    yield f"{text}."


def _of(found: Comparison, name: str, label: str) -> pd.DataFrame:
    table = found.table(name)
    return table[table["trace"] == label]


def _failed(side: SideSums) -> list[str]:
    return [check.check for check in side.failed]


def _name(label: str) -> str:
    return one_line(label)
