"""E11 of a trace: whether a few experts carry every subject."""

from __future__ import annotations

import numpy as np
import pandas as pd

from moe_probe.analysis.accumulators.counts import Counts
from moe_probe.analysis.accumulators.weights import WeightSums
from moe_probe.analysis.metrics.committee import committee
from moe_probe.analysis.reading.rules import Rule
from moe_probe.analysis.scan import Progress
from moe_probe.analysis.statistics.undefined import positive
from moe_probe.analysis.studies.scanning import AnyTrace, facts_of, fill, source_of, stacked
from moe_probe.trace import Capture


def committees(
    trace: AnyTrace,
    *,
    rule: Rule | str | None = None,
    share: float = 0.8,
    threads: int | None = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Tabulate whether a few experts carry every subject, and how much of it (E11).

    Args:
        trace: The trace, or where it lies. Where it has gate weights, an expert's contribution to a
            subject is its weight per token, else its selection frequency.
        rule: Which tokens count; the trace's default rule if None. Tokens that all subjects have
            make a committee by themselves: compare the rules question and no-template.
        share: Part of the subjects in whose k largest contributions a candidate must be.
        threads: Threads of the scan; all processors if None.
        progress: Called with the number of layers done, and of all.

    Returns:
        One row per layer.
        layer
        contribution  "weights" or "selections"
        candidates, candidates_null  experts in the lists of enough subjects, and how many if every
            subject drew its list at random, of k experts or more where some share the last place;
            the latter null with fewer than two subjects
        members  candidates that no other is ahead of: none has a mean rank and a variance of ranks
            at most as high, and one of the two lower
        experts  their ids, with blanks in between
        coverage, coverage_null  mean over subjects of the members' share of all contributions; that
            of any c experts, c/N. Null without members
        influence  mean contribution of a member over that of another expert; 1 of any c experts.
            Members are those that came out ahead, so by noise alone both are above: by a fifth to a
            quarter where subjects have 100 to 300 tokens
        influence_flat  (N - c)/(k - c), what the published formula, which knows only lists of k
            experts, gives where all in the lists are alike: no concentration
        Source: Standing Committee (2601.03425), over all experts and tokens.

    Raises:
        TraceError: the trace has no per-token rows, or is damaged.
        ValueError: there is no such rule or share.
    """
    if not 0 < share <= 1:
        raise ValueError(f"a share of {share} of the subjects: above 0, at most 1")
    source = source_of(trace)
    facts = facts_of(source, rule)
    counts, weights = Counts(*facts), WeightSums(*facts)
    has_weights = source.trace.capture is Capture.WEIGHTS
    fill(source, [counts, weights] if has_weights else [counts], threads, progress)

    def table(layer: int) -> pd.DataFrame:
        spec, (counts_SN, tokens_S) = source.layers[layer], counts.by_group(layer)
        mass_SN = weights.arrays[layer]["weight_sum_SN"] if has_weights else counts_SN
        per_token_SN = np.nan_to_num(mass_SN / positive(tokens_S)[:, None])
        found = committee(per_token_SN, spec.top_k, share)
        number = len(found.members_M)
        return pd.DataFrame(
            {
                "contribution": ["weights" if has_weights else "selections"],
                "candidates": [found.candidates],
                "candidates_null": [found.candidates_null],
                "members": [number],
                "experts": [" ".join(map(str, found.members_M.tolist()))],
                "coverage": [found.coverage],
                "coverage_null": [number / spec.num_experts if number else np.nan],
                "influence": [found.influence],
                "influence_flat": [found.influence_flat],
            }
        )

    return stacked(((layer, table(layer)) for layer in source.layers), source, rule)
