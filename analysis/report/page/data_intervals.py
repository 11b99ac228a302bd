"""What 95 % intervals on the page are widened by: of all text, of each subject and of each area.

Shape suffixes: S groups (task, subject, area), L layers, N experts of the widest layer;
P parts of the text: all of it, subjects, areas.
"""

from __future__ import annotations

import numpy as np

from moe_probe.analysis.report.contents import Contents
from moe_probe.analysis.report.page.payload import DIGITS, Payload, round_float32
from moe_probe.analysis.statistics.moderated import centred_within, interval_deffs
from moe_probe.analysis.tables.experts import median_deff


def intervals(contents: Contents, payload: Payload) -> None:
    """Add design effects as intervals are to use them, NaN where unknown.

    intervals.all float32 [L, N], of all text; intervals.median [L, P], the median over experts in
    each part of the text; and intervals.within [L, N], how many times the median an expert's is
    inside subjects: by subject and expert they would take more space than the rest of the page.
    """
    sums = contents.analysis.sums
    areas = sorted({area for area in sums.areas if area})
    shape = len(sums.specs), max(spec.num_experts for spec in sums.specs.values())
    all_LN, within_LN = np.full(shape, np.nan), np.full(shape, np.nan)
    median_LP = np.full((shape[0], 1 + len(sums.subjects) + len(areas)), np.nan)
    is_in_area = [np.array([own == area for own in sums.areas]) for area in areas]
    for place, layer in enumerate(sums.specs):
        state = sums.layers.get(layer)
        if state is None:
            continue
        moments, all_N = state.moments, state.interval_deffs_N
        parts = [moments, *(moments.of(chosen_S).pooled() for chosen_S in is_in_area)]
        wide = [all_N[None], *map(interval_deffs, parts)]
        within_N = interval_deffs(centred_within(moments))[0]
        all_LN[place, : len(all_N)] = all_N
        within_LN[place, : len(within_N)] = within_N / median_deff(within_N)
        median_LP[place] = [median_deff(wide_N) for wide_PN in wide for wide_N in wide_PN]
    payload.array("intervals.all", round_float32(all_LN, DIGITS))
    payload.array("intervals.within", round_float32(within_LN, DIGITS))
    payload.array("intervals.median", round_float32(median_LP, DIGITS))
