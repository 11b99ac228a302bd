"""J1 to J3 of a trace: how far the token id alone decides the experts."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pandas as pd

from moe_probe.analysis.accumulators.vocabulary import TokenCounts, counted_token_ids
from moe_probe.analysis.metrics import vocabulary
from moe_probe.analysis.metrics.token_counts import VocabularyCounts
from moe_probe.analysis.reading.rules import Rule
from moe_probe.analysis.scan import Progress
from moe_probe.analysis.studies.scanning import (
    AnyTrace,
    by_layers,
    facts_of,
    refuse_none,
    source_of,
    stacked,
)
from moe_probe.trace import LayerSpec

_Halves = tuple[VocabularyCounts, VocabularyCounts]


def vocabulary_specialization(
    trace: AnyTrace,
    *,
    rule: Rule | str | None = None,
    least: int = 10,
    threads: int | None = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Tabulate how much of a token id's tokens its favourite expert gets (J1).

    VS(e, x) = N_xe / N_x is the share of the tokens of id x that select expert e; here its maximum
    over experts.

    Args:
        trace: The trace, or where it lies.
        rule: Which tokens count; the trace's default rule if None.
        least: Tokens that an id must have: rare ids have a high maximum by chance, those that occur
            once have 1.
        threads: Threads of the scan; all processors if None.
        progress: Called with the number of layers done, and of all.

    Returns:
        One row per layer.
        layer
        token_ids, tokens  ids that are frequent enough, and their tokens
        specialization  mean of the maximum over token ids, in [1/N, 1]; null without any
        specialization_null  where experts keep their frequencies and ignore the token id
        weighted, weighted_null  the same two as means over tokens, not ids
        Source: OLMoE (2409.02060), equation 8, which includes ids that occur once.

    Raises:
        TraceError: the trace has no per-token rows or no token ids, or is damaged.
        ValueError: there is no such rule, or a number below 1.
    """

    refuse_none("least={}", least)

    def table(found: _Halves, spec: LayerSpec) -> pd.DataFrame:
        share = vocabulary.top_share(found[0].merge(found[1]), least)
        return pd.DataFrame(
            {
                "token_ids": [share.token_ids],
                "tokens": [share.tokens],
                "specialization": [share.mean],
                "specialization_null": [share.mean_null],
                "weighted": [share.weighted],
                "weighted_null": [share.weighted_null],
            }
        )

    return _tabulate(trace, rule, table, threads, progress)


def token_lists(
    trace: AnyTrace,
    *,
    rule: Rule | str | None = None,
    most: int = 20,
    least: int = 10,
    threads: int | None = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Tabulate the token ids that each expert is selected for more than others (J2).

    Args:
        trace: The trace, or where it lies.
        rule: Which tokens count; the trace's default rule if None.
        most: Token ids per expert.
        least: Tokens that an id must have; also the weight of the prior, in tokens.
        threads: Threads of the scan; all processors if None.
        progress: Called with the number of layers done, and of all.

    Returns:
        By layer and expert, and the largest z first.
        layer, expert, token_id
        count  tokens of the id that select the expert
        tokens  of the id
        share  count / tokens
        share_null  p, the expert's share of all tokens
        log_odds  that a selection by the id goes to the expert, less those for all other ids, in
            nats, both with the expert's share as prior; only values above 0 are listed
        z  log_odds over its standard error, as if tokens were independent: an order, not a test
        Source: Monroe, Colaresi and Quinn (2008), equations 15 and 16.

    Raises:
        TraceError: the trace has no per-token rows or no token ids, or is damaged.
        ValueError: there is no such rule, or a number below 1.
    """

    refuse_none("most={}", most)
    refuse_none("least={}", least)

    def table(found: _Halves, spec: LayerSpec) -> pd.DataFrame:
        counts = found[0].merge(found[1])
        listed = vocabulary.token_lists(counts, most, least)
        frequency_N = counts.counts_N / max(int(counts.tokens_X.sum()), 1)
        place = list(listed.columns).index("share") + 1
        listed.insert(place, "share_null", frequency_N[listed["expert"].to_numpy()])
        return listed

    return _tabulate(trace, rule, table, threads, progress)


def token_predictability(
    trace: AnyTrace,
    *,
    rule: Rule | str | None = None,
    least: int = 5,
    threads: int | None = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Tabulate how much of the routing a table from token id to k experts foresees (J3).

    Documents are dealt into two halves by a hash of their names. Each half's selections are
    foreseen by the other half's table: a token id's k most frequent experts there.

    Args:
        trace: The trace, or where it lies.
        rule: Which tokens count; the trace's default rule if None.
        least: Tokens that an id must have in the table; all others get the k experts that are most
            frequent in all.
        threads: Threads of the scan; all processors if None.
        progress: Called with the number of layers done, and of all.

    Returns:
        One row per layer.
        layer
        recall  share of selections foreseen, in [0, 1]; 1 where the token id decides; null where
            a half has none
        recall_null  the same if all tokens are expected to select the k most frequent experts
        known  share of selections by token ids that the table has

    Raises:
        TraceError: the trace has no per-token rows or no token ids, or is damaged.
        ValueError: there is no such rule, or a number below 1.
    """

    refuse_none("least={}", least)

    def table(found: _Halves, spec: LayerSpec) -> pd.DataFrame:
        judged = [
            vocabulary.token_recall(fitted, evaluated, spec.top_k, least)
            for fitted, evaluated in (found, found[::-1])
        ]
        weight = [int(evaluated.counts_N.sum()) for evaluated in found[::-1]]
        total = max(sum(weight), 1)

        def mean(name: str) -> float:
            values = (getattr(half, name) for half in judged)
            return float(sum(v * w for v, w in zip(values, weight, strict=True)) / total)

        return pd.DataFrame(
            {"recall": [mean("recall")], "recall_null": [mean("null")], "known": [mean("known")]}
        )

    return _tabulate(trace, rule, table, threads, progress)


def _tabulate(
    trace: AnyTrace,
    rule: Rule | str | None,
    table: Callable[[_Halves, LayerSpec], pd.DataFrame],
    threads: int | None,
    progress: Progress | None,
) -> pd.DataFrame:
    source = source_of(trace)
    _, chosen, index = facts_of(source, rule)
    token_ids_X, tokens_X = counted_token_ids(source, chosen)
    most = int(tokens_X.max(initial=0))

    def make(layers: Mapping[int, LayerSpec]) -> tuple[TokenCounts]:
        return (TokenCounts(layers, chosen, index, token_ids_X=token_ids_X, most=most),)

    found = by_layers(source, make, threads, progress)
    tables = (
        (layer, table(counts.halves(layer), source.layers[layer])) for layer, (counts,) in found
    )
    return stacked(tables, source, rule)
