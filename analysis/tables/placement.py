"""The table `placement`: whether experts placed by the loads of one text are even on another.

Shape suffixes: L layers, X placements, Y texts, S groups (task, subject, area), N experts of a
layer, D devices.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from moe_probe.analysis.metrics.devices import device_null, even_null, group_limit
from moe_probe.analysis.metrics.placement import (
    contiguous_placement,
    greedy_placement,
    own_balance,
    placed_balance,
)
from moe_probe.analysis.statistics.set_sizes import SetSizes
from moe_probe.analysis.statistics.undefined import positive
from moe_probe.analysis.sums import Sums
from moe_probe.analysis.tables.design_effects import mean_deff, mean_deffs
from moe_probe.analysis.tables.devices import fitting_devices
from moe_probe.trace import LayerSpec

_COLUMNS = ("devices", "fit", "fit_subject", "subject", "balancedness", "balancedness_null")


def placement(sums: Sums) -> pd.DataFrame:
    """Tabulate balance between devices under placements made for some text, on other text.

    Placements give every device the same number of experts, the heaviest first, each to the
    lightest device with room (`greedy_placement`); numbers of devices are those of `devices`.

    Returns:
        devices
        fit  whose loads the placement is made for. contiguous: none's, experts by id; all: all
            text; other half: half of the documents of all text, and the reverse; other subjects:
            all text but the subject's; subject: those of `fit_subject`, which may be the subject
        fit_subject  "" for other fits
        subject  whose loads are balanced; "" for all text
        balancedness  mean over layers of mean / max of the devices' loads; 1 is even; null where
            no selections are known
        balancedness_null  what fair routing of as many tokens, over their mean design effect, gives
            under any placement that does not know them
    """
    texts = [_texts(sums, layer) for layer in sums.specs]
    rows = [row for devices in fitting_devices(sums) for row in _rows(sums, texts, devices)]
    return pd.DataFrame(rows, columns=list(_COLUMNS))


@dataclass(frozen=True)
class _Texts:
    """What one layer counts of all text, of both halves of the documents, and of every subject."""

    spec: LayerSpec
    sizes: SetSizes
    counts_YN: np.ndarray
    effective_Y: np.ndarray
    """T over the design effect; T where none is known."""


_ALL, _HALVES, _SUBJECTS = 0, (1, 2), 3
"""Where the texts stand."""


def _texts(sums: Sums, layer: int) -> _Texts:
    spec, state = sums.specs[layer], sums.layers.get(layer)
    counts_SN, tokens_S = sums.by_group(layer)
    unknown_2N = np.zeros((2, spec.num_experts), np.int64)
    halves_2N = unknown_2N if state is None else state.halves_2N
    deff_S = mean_deffs(state, len(counts_SN))
    half_deff = np.nan if state is None else state.halves_deff
    deff_Y = np.array([mean_deff(state), half_deff, half_deff, *deff_S])
    sizes = sums.set_sizes(layer)
    half_tokens_2 = halves_2N.sum(axis=1) / positive(sizes.mean_k)
    tokens_Y = np.array([tokens_S.sum(), *half_tokens_2, *tokens_S])
    return _Texts(
        spec=spec,
        sizes=sizes,
        counts_YN=np.concatenate([counts_SN.sum(axis=0)[None], halves_2N, counts_SN]),
        effective_Y=tokens_Y / np.where(deff_Y > 0, deff_Y, 1.0),
    )


def _rows(sums: Sums, texts: list[_Texts], devices: int) -> list[tuple[object, ...]]:
    names = sums.subjects if len(sums.subjects) > 1 else []
    found = _mean_over_layers(texts, devices, len(names))
    rows: list[tuple[object, ...]] = []

    def add(fit: str, fit_subject: str, subject: int, value: float) -> None:
        null = found.null_Y[_SUBJECTS + subject]
        rows.append((devices, fit, fit_subject, names[subject], value, null))

    null_3 = (found.null_Y[_ALL], found.null_Y[_ALL], found.null_Y[[*_HALVES]].mean())
    for fit, *values in zip(("contiguous", "all", "other half"), found.all_3, null_3, strict=True):
        rows.append((devices, fit, "", "", *values))
    for subject in range(len(names)):
        add("contiguous", "", subject, found.contiguous_S[subject])
        add("other subjects", "", subject, found.others_S[subject])
    for fit_at, fit_name in enumerate(names):
        for subject in range(len(names)):
            add("subject", fit_name, subject, found.subject_SS[fit_at, subject])
    return rows


@dataclass(frozen=True)
class _Balance:
    """Mean over largest device load; null where unknown."""

    all_3: np.ndarray
    """All text under contiguous experts, under its own placement, and halves under each other's."""
    contiguous_S: np.ndarray
    others_S: np.ndarray
    subject_SS: np.ndarray
    """Subjects that placements are made for, by subjects whose loads are balanced."""
    null_Y: np.ndarray


def _mean_over_layers(texts: list[_Texts], devices: int, subjects: int) -> _Balance:
    """Return means over the layers that know a value."""
    found = []
    for layer, device_XN in zip(texts, _placements(texts, devices, subjects), strict=True):
        spec, sizes, counts_YN = layer.spec, layer.sizes, layer.counts_YN
        contiguous_N = contiguous_placement(spec.num_experts, devices)
        fixed_XN = np.concatenate([contiguous_N[None], device_XN[:_SUBJECTS]])
        fixed_XY = placed_balance(counts_YN, fixed_XN, devices)
        halves = [fixed_XY[1 + one, other] for one, other in (_HALVES, _HALVES[::-1])]
        subject_SN = counts_YN[_SUBJECTS : _SUBJECTS + subjects]
        others_SN, own_SN = np.split(device_XN[_SUBJECTS:], 2)
        others_S = own_balance(subject_SN, others_SN, devices)
        subject_SS = placed_balance(subject_SN, own_SN, devices)
        subject_SS[~subject_SN.any(axis=1)] = np.nan
        facts = spec.num_experts, sizes.null_k, devices
        cv_Y = [
            device_null(*facts, tokens, group_limit(spec)).cv
            for tokens in map(sizes.null_tokens, layer.effective_Y)
        ]
        all_3 = np.array([fixed_XY[0, _ALL], fixed_XY[1, _ALL], np.mean(halves)])
        contiguous_S = fixed_XY[0, _SUBJECTS : _SUBJECTS + subjects]
        found.append((all_3, contiguous_S, others_S, subject_SS, cv_Y))
    *balances, cv_LY = (np.stack(values) for values in zip(*found, strict=True))
    return _Balance(*map(_known_mean, [*balances, even_null(cv_LY, devices)]))


def _placements(texts: list[_Texts], devices: int, subjects: int) -> list[np.ndarray]:
    """Place every layer's experts for all text, for its halves, for all but each subject, and for
    each: int64 [X, N] by layer. Layers of one size are placed together, which is much faster."""
    fitted = [
        np.concatenate([counts_YN[:_SUBJECTS], counts_YN[_ALL] - subject_SN, subject_SN])
        for counts_YN in (layer.counts_YN for layer in texts)
        for subject_SN in (counts_YN[_SUBJECTS : _SUBJECTS + subjects],)
    ]
    placed: dict[int, np.ndarray] = {}
    for size in {layer.spec.num_experts for layer in texts}:
        places = [at for at, layer in enumerate(texts) if layer.spec.num_experts == size]
        device_XN = greedy_placement(np.concatenate([fitted[at] for at in places]), devices)
        placed |= dict(zip(places, np.split(device_XN, len(places)), strict=True))
    return [placed[at] for at in range(len(texts))]


def _known_mean(value_LX: np.ndarray) -> np.ndarray:
    """Return the mean over layers; NaN where none has a value."""
    known_X = (~np.isnan(value_LX)).sum(axis=0)
    return np.asarray(np.nansum(value_LX, axis=0) / np.where(known_X, known_X, np.nan))
