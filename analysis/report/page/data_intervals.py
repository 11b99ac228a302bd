"""What 95 % intervals on the page are widened by: of all text, of each subject and of each area.

Shape suffixes: S groups (task, subject, area), L layers, N experts of the widest layer;
P parts of the text: all of it, subjects, meta.areas; 2 is all text, and inside subjects.
"""

from __future__ import annotations

import numpy as np

from moe_probe.analysis.report.contents import Contents
from moe_probe.analysis.report.page.payload import Payload, round_float32
from moe_probe.analysis.statistics.moderated import centred_within, interval_deffs
from moe_probe.analysis.tables.design_effects import median_deff


def intervals(contents: Contents, payload: Payload) -> None:
    """Add design effects as intervals are to use them; by part and expert they would be too large.

    intervals.median float32 [L, P], the median over experts in each part of the text, NaN where
    unknown; and intervals.expert int8 [2, L, N], eighths of log2 of how many times the median an
    expert's is: a width is off by 2 % at most.
    """
    sums = contents.analysis.sums
    areas = payload.meta["areas"]
    shape = len(sums.specs), max(spec.num_experts for spec in sums.specs.values())
    expert_2LN = np.zeros((2, *shape), np.int8)
    median_LP = np.full((shape[0], 1 + len(sums.subjects) + len(areas)), np.nan)
    is_in_area = [np.array([own == area for own in sums.areas]) for area in areas]
    for place, layer in enumerate(sums.specs):
        state = sums.layers.get(layer)
        if state is None:
            continue
        moments, all_N = state.moments, state.interval_deffs_N
        parts = [moments, *(moments.of(chosen_S).pooled() for chosen_S in is_in_area)]
        wide = [all_N[None], *map(interval_deffs, parts)]
        median_LP[place] = [median_deff(wide_N) for wide_PN in wide for wide_N in wide_PN]
        expert_2LN[0, place, : len(all_N)] = _eighths(all_N)
        expert_2LN[1, place, : len(all_N)] = _eighths(interval_deffs(centred_within(moments))[0])
    payload.array("intervals.median", round_float32(median_LP, 3))
    payload.array("intervals.expert", expert_2LN)


def _eighths(wide_N: np.ndarray) -> np.ndarray:
    eighths_N = np.round(8 * np.log2(wide_N / median_deff(wide_N)))
    return np.asarray(np.nan_to_num(np.clip(eighths_N, -127, 127)), np.int8)
