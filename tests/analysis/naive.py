"""What tables say of one layer, by loops over single tokens and their sets of experts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from itertools import groupby

import numpy as np

from moe_probe.trace import LayerSpec
from tests.analysis.statistics.moderated_oracle import (
    naive_interval_deffs,
    naive_length_correction,
)
from tests.analysis.streams import Token, canonical

Document = tuple[str, tuple[int, int]]


@dataclass(frozen=True)
class NaiveLayer:
    """The tokens that a rule counts, in canonical order."""

    tokens: list[Token]
    spec: LayerSpec

    @classmethod
    def of(cls, tokens: list[Token], spec: LayerSpec) -> NaiveLayer:
        return cls(canonical(tokens), spec)

    @property
    def experts(self) -> range:
        return range(self.spec.num_experts)

    @property
    def subjects(self) -> list[str]:
        return sorted({token.subject for token in self.tokens})

    def slots(self, token: Token) -> list[int]:
        return token.experts[self.spec.layer]

    def count(self, expert: int, tokens: Sequence[Token] | None = None) -> int:
        chosen = self.tokens if tokens is None else tokens
        return sum(expert in self.slots(token) for token in chosen)

    def of_subject(self, subject: str) -> list[Token]:
        return [token for token in self.tokens if token.subject == subject]

    @cached_property
    def documents(self) -> dict[Document, list[Token]]:
        """Prefixes included, in canonical order."""
        by_document = groupby(self.tokens, lambda token: (token.subject, token.document))
        return {document: list(tokens) for document, tokens in by_document}

    @property
    def proper_documents(self) -> list[list[Token]]:
        return [tokens for (_, document), tokens in self.documents.items() if document[0]]

    @property
    def halves(self) -> list[list[Token]]:
        """Tokens of the documents by the parity of a hash of what names each in every shard."""
        halves: list[list[Token]] = [[], []]
        for (subject, (kind, number)), tokens in self.documents.items():
            if kind:
                key = "\x1f".join(("t", subject, "", "1", str(number), "0"))
                halves[blake2b(key.encode(), digest_size=1, salt=b"half").digest()[0] & 1] += tokens
        return halves

    @cached_property
    def loads(self) -> list[float]:
        """Relative loads of all experts."""
        counts = [self.count(expert) for expert in self.experts]
        total = sum(counts)
        return [self.spec.num_experts * c / total if total else math.nan for c in counts]

    def runs(self, expert: int, tokens: Sequence[Token] | None = None) -> list[int]:
        """Idle runs before, between and after the selections."""
        runs = [0]
        for token in self.tokens if tokens is None else tokens:
            if expert in self.slots(token):
                runs.append(0)
            else:
                runs[-1] += 1
        return runs

    def deff(self, expert: int, documents: Sequence[list[Token]] | None = None) -> float:
        """Variance of p with documents as the unit, over that of independent tokens."""
        parts = list(self.documents.values()) if documents is None else documents
        total = sum(len(part) for part in parts)
        p = sum(self.count(expert, part) for part in parts) / total if total else math.nan
        if len(parts) < 2 or not 0 < p < 1:
            return math.nan
        squares = sum((self.count(expert, part) - p * len(part)) ** 2 for part in parts)
        variance = len(parts) / (len(parts) - 1) * squares / total**2
        return variance / (p * (1 - p) / total)

    def corrected_deff(self, expert: int, documents: Sequence[list[Token]] | None = None) -> float:
        """The same, corrected for the lengths of the documents."""
        parts = list(self.documents.values()) if documents is None else documents
        deff = self.deff(expert, parts)
        if math.isnan(deff):
            return deff
        counts = [[self.count(e, part) for e in self.experts] for part in parts]
        sizes = np.array([len(part) for part in parts])
        return deff * naive_length_correction(np.array(counts), sizes)

    def interval_deffs(self) -> np.ndarray:
        parts = list(self.documents.values())
        counts = [[self.count(expert, part) for expert in self.experts] for part in parts]
        return naive_interval_deffs(np.array(counts), np.array([len(part) for part in parts]))

    def median_deff(self, documents: Sequence[list[Token]] | None = None) -> float:
        found = [self.deff(expert, documents) for expert in self.experts]
        known = [value for value in found if not math.isnan(value)]
        return float(np.median(known)) if known else math.nan


def entropy(counts: Iterable[float]) -> float:
    """In nats."""
    counts = list(counts)
    total = sum(counts)
    return -sum(c / total * math.log(c / total) for c in counts if c)
