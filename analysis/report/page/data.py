"""What the page is given: every section adds its own part to one payload."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from moe_probe.analysis.report.contents import Contents
from moe_probe.analysis.report.page.data_core import counts, facts, tables
from moe_probe.analysis.report.page.data_documents import documents
from moe_probe.analysis.report.page.data_intervals import intervals
from moe_probe.analysis.report.page.data_load import load
from moe_probe.analysis.report.page.data_structure import structure
from moe_probe.analysis.report.page.data_subjects import subjects
from moe_probe.analysis.report.page.payload import Payload

SECTIONS: tuple[Callable[[Contents, Payload], None], ...] = (
    facts,
    counts,
    tables,
    intervals,
    load,
    subjects,
    structure,
)
"""Called in this order."""


def payload_of(contents: Contents, tokenizer: Path | None = None) -> Payload:
    """Return all that the page's figures and tables are made of.

    Raises UsageError where `tokenizer`, which gives tokens their text, cannot be read.
    """
    payload = Payload()
    for add in SECTIONS:
        add(contents, payload)
    documents(contents, payload, tokenizer)
    return payload
