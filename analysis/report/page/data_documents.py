"""A few documents token by token, for the page, and what their tokens are as text.

Shape suffixes: T tokens of all excerpts, K slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moe_probe.analysis.report.contents import Contents
from moe_probe.analysis.report.page.excerpts import choose, read
from moe_probe.analysis.report.page.payload import Payload
from moe_probe.errors import UsageError
from moe_probe.trace import Capture

MOST_DOCUMENTS = 12
MOST_TOKENS = 400
"""Tokens of one document."""
MOST_SELECTIONS = 250_000
"""Expert ids of all excerpts, for a file's size: they hardly compress."""
_LEAST_TOKENS = 100
"""Fewer documents are better than shorter excerpts than this."""


def documents(contents: Contents, payload: Payload, tokenizer: Path | None = None) -> None:
    """Add excerpts of a few documents; none where the trace has no rows or no token ids.

    meta.documents: facts of each, with `subject`, the place of its subject, and `tokens`. Arrays,
    documents one after the other: documents.token_id and documents.segment int [T], and
    documents.ids int [sum of T K over layers], layer by layer; N for an empty slot.
    meta.slot_order: how run.json says that slots are ordered.
    meta.token_texts: text by token id, null for an unknown one; only with `tokenizer`.

    Raises:
        UsageError: `tokenizer` cannot be read.
    """
    sums = contents.analysis.sums
    payload.meta["documents"] = []
    if sums.trace.capture is Capture.COUNTS or not sums.specs:
        return
    room = MOST_SELECTIONS // sum(spec.top_k for spec in sums.specs.values())
    number = min(MOST_DOCUMENTS, max(room // _LEAST_TOKENS, 1))
    tokens = max(min(MOST_TOKENS, room // number), 1)
    excerpts, routing = read(sums.trace, choose(sums.trace, documents=number, tokens=tokens))
    if not excerpts or (routing.token_id_T < 0).any():
        return
    groups = {group: place for place, group in enumerate(sums.counts.axes.groups)}
    for excerpt in excerpts:
        facts = excerpt.sequence
        payload.meta["documents"].append(
            {
                "subject": groups[facts["task"], facts["subject"], facts["area"]],
                "sequence_id": facts["sequence_id"],
                "doc_id": facts["doc_id"],
                "start": excerpt.start,
                "tokens": len(excerpt),
                "num_tokens": facts["num_tokens"],
            }
        )
    payload.meta["slot_order"] = str(sums.trace.run.get("slot_order", "unknown"))
    payload.array("documents.token_id", routing.token_id_T.astype(np.int64))
    payload.array("documents.segment", np.concatenate([one.segment_T for one in excerpts]))
    payload.array("documents.ids", np.concatenate([ids.ravel() for ids in routing.ids.values()]))
    if tokenizer is not None:
        different = np.unique(routing.token_id_T).tolist()
        texts = token_texts(different, tokenizer)
        payload.meta["token_texts"] = dict(zip(map(str, different), texts, strict=True))


def token_texts(token_ids: Sequence[int], path: Path) -> list[str | None]:
    """Return the text of each token id, with the space before it where it has one.

    A token that is part of a character is given as the vocabulary spells it.

    Args:
        token_ids: Of the vocabulary; None is returned for an id that it does not have.
        path: A tokenizer.json, or a folder with one. Only what a user names: a trace is not trusted
            to name files.

    Raises:
        UsageError: there is no such file, or it is not a tokenizer, or the package is missing.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise UsageError(
            "Token texts need the package tokenizers. Run pip install tokenizers, or leave out "
            "--tokenizer."
        ) from error
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise UsageError(f"There is no tokenizer at {file}. Name a tokenizer.json or its folder.")
    try:
        tokenizer = Tokenizer.from_file(str(file))
    # The package raises nothing more specific.
    except Exception as error:
        raise UsageError(f"{file} is not a tokenizer: {error}. Name a tokenizer.json.") from error
    return [_token_text(tokenizer, token_id) for token_id in token_ids]


def _token_text(tokenizer: Any, token_id: int) -> str | None:
    spelled: str | None = tokenizer.id_to_token(token_id)
    if spelled is None:
        return None
    text: str = tokenizer.decode([token_id], skip_special_tokens=False)
    if "\ufffd" in text or not text:
        return spelled
    # Decoders that join words with spaces drop the one at the beginning of a text.
    return f" {text}" if spelled.startswith("▁") and not text.startswith(" ") else text
