"""Analysis of traces: one scan fills accumulators; metrics, tables and reports read those.

`analyse` gives all tables of a trace as DataFrames. For metrics of your own there are the scan, its
accumulators and the functions of `metrics` and `statistics`; functions such as `working_sets`
answer one question more with a scan of their own. The names below load on first use.
Nothing here imports torch or `moe_probe.hooks`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moe_probe.analysis.accumulators.counts import Counts, LayerCounts
    from moe_probe.analysis.accumulators.document_sums import DocumentMoments, Replicates
    from moe_probe.analysis.accumulators.documents import DocumentCounts
    from moe_probe.analysis.accumulators.gaps import Gaps, IdleRuns
    from moe_probe.analysis.accumulators.pass_experts import PassExperts
    from moe_probe.analysis.metrics.decomposition import (
        Concentration,
        concentration_difference,
        truncation_floor,
    )
    from moe_probe.analysis.quality import Check, check_trace
    from moe_probe.analysis.reading.orders import Order
    from moe_probe.analysis.reading.passes import PassTable
    from moe_probe.analysis.reading.rules import Rule
    from moe_probe.analysis.reading.source import Rows, Source
    from moe_probe.analysis.report import write_report
    from moe_probe.analysis.results import Analysis, analyse
    from moe_probe.analysis.scan import count
    from moe_probe.analysis.settings import Settings
    from moe_probe.analysis.studies.arrivals import arrival_memory
    from moe_probe.analysis.studies.batches import batch_balance
    from moe_probe.analysis.studies.committees import committees
    from moe_probe.analysis.studies.contexts import token_contexts
    from moe_probe.analysis.studies.devices import device_fanout
    from moe_probe.analysis.studies.drift import load_changes, load_drift
    from moe_probe.analysis.studies.exposures import exposures
    from moe_probe.analysis.studies.first_choices import first_choices
    from moe_probe.analysis.studies.locality import working_sets
    from moe_probe.analysis.studies.margins import margin_contrast
    from moe_probe.analysis.studies.next_layer import expert_flows, layer_predictability
    from moe_probe.analysis.studies.passes import pass_balance
    from moe_probe.analysis.studies.segments import matched_segments
    from moe_probe.analysis.studies.selectivity import expert_selectivity, subject_selectivity
    from moe_probe.analysis.studies.set_sizes import experts_per_token
    from moe_probe.analysis.studies.stability import ranking_stability
    from moe_probe.analysis.studies.subject_tree import document_separation, subject_clades
    from moe_probe.analysis.studies.vocabulary import (
        token_lists,
        token_predictability,
        vocabulary_specialization,
    )

__all__ = [
    "Analysis",
    "Check",
    "Concentration",
    "Counts",
    "DocumentCounts",
    "DocumentMoments",
    "Gaps",
    "IdleRuns",
    "LayerCounts",
    "Order",
    "PassExperts",
    "PassTable",
    "Replicates",
    "Rows",
    "Rule",
    "Settings",
    "Source",
    "analyse",
    "arrival_memory",
    "batch_balance",
    "check_trace",
    "committees",
    "concentration_difference",
    "count",
    "device_fanout",
    "document_separation",
    "expert_flows",
    "expert_selectivity",
    "experts_per_token",
    "exposures",
    "first_choices",
    "layer_predictability",
    "load_changes",
    "load_drift",
    "margin_contrast",
    "matched_segments",
    "pass_balance",
    "ranking_stability",
    "subject_clades",
    "subject_selectivity",
    "token_contexts",
    "token_lists",
    "token_predictability",
    "truncation_floor",
    "vocabulary_specialization",
    "working_sets",
    "write_report",
]

_MODULES = {
    "Analysis": "results",
    "Check": "quality",
    "Concentration": "metrics.decomposition",
    "Counts": "accumulators.counts",
    "DocumentCounts": "accumulators.documents",
    "DocumentMoments": "accumulators.document_sums",
    "Gaps": "accumulators.gaps",
    "IdleRuns": "accumulators.gaps",
    "LayerCounts": "accumulators.counts",
    "Order": "reading.orders",
    "PassExperts": "accumulators.pass_experts",
    "PassTable": "reading.passes",
    "Replicates": "accumulators.document_sums",
    "Rows": "reading.source",
    "Rule": "reading.rules",
    "Settings": "settings",
    "Source": "reading.source",
    "analyse": "results",
    "batch_balance": "studies.batches",
    "arrival_memory": "studies.arrivals",
    "check_trace": "quality",
    "count": "scan",
    "committees": "studies.committees",
    "concentration_difference": "metrics.decomposition",
    "device_fanout": "studies.devices",
    "document_separation": "studies.subject_tree",
    "expert_flows": "studies.next_layer",
    "expert_selectivity": "studies.selectivity",
    "experts_per_token": "studies.set_sizes",
    "exposures": "studies.exposures",
    "first_choices": "studies.first_choices",
    "layer_predictability": "studies.next_layer",
    "load_changes": "studies.drift",
    "load_drift": "studies.drift",
    "pass_balance": "studies.passes",
    "margin_contrast": "studies.margins",
    "matched_segments": "studies.segments",
    "ranking_stability": "studies.stability",
    "subject_clades": "studies.subject_tree",
    "subject_selectivity": "studies.selectivity",
    "token_contexts": "studies.contexts",
    "token_lists": "studies.vocabulary",
    "token_predictability": "studies.vocabulary",
    "truncation_floor": "metrics.decomposition",
    "vocabulary_specialization": "studies.vocabulary",
    "working_sets": "studies.locality",
    "write_report": "report",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
