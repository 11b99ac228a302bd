"""What the page's views of subjects need beside the counts: they compute the tables' numbers anew.

Log-odds, q-values and the divergences of one layer follow from counts and design effects, which
take a hundredth of the space.

Shape suffixes: S groups (task, subject, area), L layers, M layers after one for all of them,
N experts of the widest layer, I joins of a tree; 2 what a join joins.
"""

from __future__ import annotations

import numpy as np

from moe_probe.analysis.metrics.clustering import Dendrogram, area_agreement, average_linkage
from moe_probe.analysis.metrics.subject_distance import layer_matrices, mean_over_layers
from moe_probe.analysis.metrics.subjects import LEAST_DOCUMENTS
from moe_probe.analysis.report.contents import Contents
from moe_probe.analysis.report.page.payload import DIGITS, Payload, round_float32
from moe_probe.analysis.tables.design_effects import mean_deffs, subject_deffs, within_deffs

_DEFF_DIGITS = 7
"""Very small q-values are large powers of a design effect, with its error as often."""


def subjects(contents: Contents, payload: Payload) -> None:
    """Add design effects, and the trees of subjects.

    subjects.documents int [S]; subjects.deff float32 [L, S] and subjects.deff_within [L, N], NaN
    where unknown; subjects.deff_mean float32 [L, S], of divergences; and `_trees`.
    """
    sums = contents.analysis.sums
    width = max(spec.num_experts for spec in sums.specs.values())
    deff_LS = np.full((len(sums.specs), len(sums.subjects)), np.nan)
    mean_LS = np.full(deff_LS.shape, np.nan)
    within_LN = np.full((len(sums.specs), width), np.nan)
    for place, (layer, spec) in enumerate(sums.specs.items()):
        state = sums.layers.get(layer)
        deff_LS[place] = subject_deffs(state, len(sums.subjects), spec.num_experts)
        mean_LS[place] = mean_deffs(state, len(sums.subjects))
        within_LN[place, : spec.num_experts] = within_deffs(state, spec.num_experts)
    payload.meta["least_documents"] = LEAST_DOCUMENTS
    payload.array("subjects.documents", sums.documents_S)
    payload.array("subjects.deff", round_float32(deff_LS, _DEFF_DIGITS))
    payload.array("subjects.deff_mean", round_float32(mean_LS, _DEFF_DIGITS))
    payload.array("subjects.deff_within", round_float32(within_LN, _DEFF_DIGITS))
    _trees(contents, payload)


def _trees(contents: Contents, payload: Payload) -> None:
    """Add the trees of subjects: average linkage of the root of their divergence.

    subjects.order int [M, S], as in `Dendrogram`; subjects.leaves int [M], how many of them the
    tree has; subjects.joined int [M, I, 2], subjects below S and S + i for join i;
    subjects.height float32 [M, I], in root bits; subjects.area_agreement float32 [M]; and
    subjects.mean_divergence float32 [S, S], in bits.
    """
    sums = contents.analysis.sums
    bits_MSS = divergences(contents)
    area_of = {area: number for number, area in enumerate(sorted(set(sums.areas)))}
    area_S = np.array([area_of[area] for area in sums.areas])
    trees = [average_linkage(np.sqrt(bits_SS)) for bits_SS in bits_MSS]
    joins = max(len(tree.links) for tree in trees)
    joined_MI2 = np.zeros((len(trees), joins, 2), np.int64)
    height_MI = np.full((len(trees), joins), np.nan)
    for place, tree in enumerate(trees):
        number = len(tree.links)
        joined_MI2[place, :number] = _joined(tree)
        height_MI[place, :number] = tree.links[:, 2]
    payload.array("subjects.order", np.stack([tree.order_S for tree in trees]))
    payload.array("subjects.leaves", np.array([len(tree.known_S) for tree in trees]))
    payload.array("subjects.joined", joined_MI2)
    payload.array("subjects.height", round_float32(height_MI, 4))
    payload.array("subjects.mean_divergence", round_float32(bits_MSS[0], DIGITS))
    agreement_M = np.array([area_agreement(tree, area_S) for tree in trees])
    payload.array("subjects.area_agreement", round_float32(agreement_M, 4))


def divergences(contents: Contents) -> np.ndarray:
    """Return the table `divergence` as matrices [M, S, S], the mean of all layers first."""
    sums, table = contents.analysis.sums, contents.analysis.table("divergence")
    bits_LSS = layer_matrices(table, sums.specs, sums.subjects)
    return np.concatenate([mean_over_layers(bits_LSS)[None], bits_LSS])


def _joined(tree: Dendrogram) -> np.ndarray:
    """Return what each join joins, leaves numbered as subjects are: int64 [I, 2]."""
    child_I2 = tree.links[:, :2].astype(np.int64)
    leaves = len(tree.known_S)
    subject_I2 = tree.known_S[np.minimum(child_I2, leaves - 1)]
    return np.where(child_I2 < leaves, subject_I2, child_I2 - leaves + len(tree.order_S))
