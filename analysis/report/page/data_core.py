"""Facts of the run, counts by subject, segment and rule, and the tables that several views read.

Shape suffixes: S groups (task, subject, area), G segments, R rules, L layers, N experts of the
widest layer.
"""

from __future__ import annotations

from dataclasses import asdict

import numpy as np

from moe_probe import __version__
from moe_probe.analysis.metrics.idle_passes import WHY_LEFT_OUT
from moe_probe.analysis.report.contents import Contents
from moe_probe.analysis.report.page.payload import Payload
from moe_probe.analysis.tables.origin import COLUMNS
from moe_probe.trace import SEGMENTS

TABLES = (
    "experts",
    "layers",
    "specialization",
    "devices",
    "coverage",
    "variance",
    "segments",
    "quality",
)
"""Tables that the page has as the files have them, but for `UNSHOWN` columns."""
UNSHOWN = {
    "experts": (
        *("deff", "rank_low", "rank_high", "in_bottom_tenth", "maybe_bottom_tenth"),
        *("low_subjects", "information_bits", "information_null", "information_q"),
    )
}
"""Columns that no view has: at full size a twentieth of the file."""


def facts(contents: Contents, payload: Payload) -> None:
    """What was run and how it was counted, for captions and choices."""
    sums = contents.analysis.sums
    settings, subjects = sums.settings, sums.counts.axes.groups
    effective = contents.layers["tokens_effective"].median()
    caption = contents.analysis.caption
    if not effective > 0:
        caption += "; T_eff is not known, and T stands for it"
    documents = int(contents.layers["documents"].fillna(0).max())
    payload.meta |= {
        "version": __version__,
        "run": contents.run,
        "rule": str(contents.rule),
        "rule_description": contents.rule.description,
        "order": str(settings.order),
        "origin": {COLUMNS["rule"]: str(contents.rule), COLUMNS["order"]: str(settings.order)},
        "idle_unit": settings.order.unit,
        "idle_left_out": WHY_LEFT_OUT if settings.in_passes else None,
        "caption": caption,
        "T": contents.tokens,
        "T_eff": float(effective) if effective > 0 else None,
        "documents": documents,
        "findings": contents.findings(),
        "warnings": contents.warnings(),
        "windows": list(settings.windows),
        "shuffles": settings.shuffles,
        "subjects": [
            {"task": task, "subject": subject, "area": area, "name": name}
            for (task, subject, area), name in zip(subjects, sums.subjects, strict=True)
        ],
        "areas": sorted({area for area in sums.areas if area}),
        "segments": list(SEGMENTS),
        "rules": [{"name": str(rule), "description": rule.description} for rule in sums.by_rule],
        "layers": [
            {
                "layer": layer.spec.layer,
                "num_experts": layer.spec.num_experts,
                "top_k": layer.spec.top_k,
                **asdict(sums.set_sizes(layer.spec.layer)),
                "tokens": layer.tokens,
            }
            for layer in contents.counts
        ],
    }


def counts(contents: Contents, payload: Payload) -> None:
    """Selections and tokens by subject, by segment and by other rules."""
    sums = contents.analysis.sums
    width = max(spec.num_experts for spec in sums.specs.values())
    shape = len(sums.subjects), len(SEGMENTS), len(sums.specs)
    counts_SGLN = np.zeros((*shape, width), np.int64)
    tokens_SGL = np.zeros(shape, np.int64)
    for place, (layer, spec) in enumerate(sums.specs.items()):
        arrays = sums.counts.arrays[layer]
        by_stratum = arrays["counts_GN"].reshape(*shape[:2], spec.num_experts)
        counts_SGLN[:, :, place, : spec.num_experts] = by_stratum
        tokens_SGL[:, :, place] = arrays["tokens_G"].reshape(shape[:2])
    payload.array("counts.subject", counts_SGLN.sum(axis=1))
    payload.array("tokens.subject", tokens_SGL.sum(axis=1))
    payload.array("counts.segment", counts_SGLN.sum(axis=0))
    payload.array("tokens.segment", tokens_SGL.sum(axis=0))
    counts_RLN = np.zeros((len(sums.by_rule), shape[2], width), np.int64)
    tokens_RL = np.zeros((len(sums.by_rule), shape[2]), np.int64)
    for number, by_rule in enumerate(sums.by_rule.values()):
        for place, found in enumerate(by_rule.by_layer()):
            counts_RLN[number, place, : found.spec.num_experts] = found.counts_N
            tokens_RL[number, place] = found.tokens
    payload.array("counts.rule", counts_RLN)
    payload.array("tokens.rule", tokens_RL)


def tables(contents: Contents, payload: Payload) -> None:
    """The tables that need no form of their own."""
    for name in TABLES:
        table = contents.analysis.table(name)
        payload.table(name, table.drop(columns=list(UNSHOWN.get(name, ())), errors="ignore"))
